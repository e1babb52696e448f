"""Linear algebra has one thread while clients work, and what it had before afterwards."""

from threading import Event, Thread

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from atoll.runtime.threads import Threads


def numbers():
    np.ones((2, 2)) @ np.ones((2, 2))
    found = threadpool_info()
    return [lib["num_threads"] for lib in found if "/torch" not in lib["filepath"]]


def blas():
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


def test_there_is_one_thread_inside_and_as_many_as_before_outside():
    with threadpool_limits(2):
        before = numbers()
        assert 2 in before
        with Threads().one():
            assert set(numbers()) == {1}
        assert numbers() == before


def test_an_error_puts_the_threads_back_too():
    threads = Threads()
    with threadpool_limits(2):
        before = numbers()
        with pytest.raises(ZeroDivisionError), threads.one():
            raise ZeroDivisionError
        assert numbers() == before


def test_a_run_in_another_thread_has_one_thread_too():
    """threadpoolctl let the first thread that had set a number set it, and nobody else."""
    seen = []

    def run():
        with Threads().one():
            seen.append(blas())

    with threadpool_limits(2, user_api="blas"):
        before = numbers()
        assert 2 in before
        with Threads().one():
            pass
        other = Thread(target=run)
        other.start()
        other.join()
        assert seen == [{1}]
        assert numbers() == before


def test_runs_in_several_threads_hold_the_libraries_together():
    """The first to end gave the others, in the middle of their training, all threads back."""
    begun, ended, seen = Event(), Event(), []

    def run():
        with Threads().one():
            begun.set()
            ended.wait(10)
            seen.append(blas())

    with threadpool_limits(2, user_api="blas"):
        before, other = numbers(), Thread(target=run)
        with Threads().one():
            other.start()
            begun.wait(10)
        assert blas() == {1}
        ended.set()
        other.join()
        assert seen == [{1}]
        assert numbers() == before
