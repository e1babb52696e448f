"""Linear algebra has one thread while clients work, and what it had before afterwards."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from atoll.runtime.threads import Threads


def numbers():
    np.ones((2, 2)) @ np.ones((2, 2))
    found = threadpool_info()
    return [lib["num_threads"] for lib in found if "/torch" not in lib["filepath"]]


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
