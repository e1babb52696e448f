"""Whoever waits is woken, from whatever thread; a loop in which nobody waits is left alone."""

from __future__ import annotations

import asyncio
from threading import Thread

from atoll.server.web.bell import Bell


class Counting(Bell):
    """Counts how often the loop was woken."""

    woken = 0

    def _ring(self, names) -> None:
        self.woken += 1
        super()._ring(names)


async def from_another_thread(bell: Bell, *names: str) -> None:
    thread = Thread(target=bell.ring, args=(names,))
    thread.start()
    thread.join()
    await asyncio.sleep(0)


def test_those_who_wait_are_woken_and_nobody_else_is() -> None:
    async def main() -> None:
        bell = Counting(asyncio.get_running_loop())
        with bell.place("a") as mine, bell.place("b") as other:
            await from_another_thread(bell, "c", "a")
            await asyncio.wait_for(mine.wait(), 10)
            assert not other.is_set()
            assert bell.woken == 1
            await from_another_thread(bell, "c", "run heart-1")
            await asyncio.sleep(0.05)
            assert bell.woken == 1
        await from_another_thread(bell, "a", "b")
        await asyncio.sleep(0.05)
        assert bell.woken == 1

    asyncio.run(main())


def test_nothing_is_missed_by_who_takes_a_place_before_looking() -> None:
    """News that come after the look ring; those before it are seen."""

    async def main() -> None:
        bell, news = Bell(asyncio.get_running_loop()), list[int]()

        def tell() -> None:
            for number in range(2000):
                news.append(number)
                bell.ring(["a"])

        thread = Thread(target=tell)
        thread.start()
        while True:
            with bell.place("a") as event:
                event.clear()
                if len(news) == 2000:
                    break
                await asyncio.wait_for(event.wait(), 10)
        thread.join()

    asyncio.run(main())
