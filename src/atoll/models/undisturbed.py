"""A large library imported without Python's collector, which would look through it time and again.

Importing torch makes some 150,000 objects that the collector of circular garbage follows, nearly all of
which stay. Meanwhile it runs some three hundred times, twice over everything there is.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["undisturbed"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """The collector rests inside, and afterwards counts all there is among the old objects.

    So it does not look through them at the next occasion either, only when it looks through everything;
    no object is kept from it for good. Nothing happens where it was switched off before, and what somebody
    has frozen stays frozen. The switch is the process's: other threads' circular garbage waits as well.

    >>> with undisturbed():
    ...     gc.isenabled()
    False
    >>> gc.isenabled()
    True
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # thawing takes in what others have frozen
            gc.freeze()
            gc.unfreeze()
        gc.enable()
