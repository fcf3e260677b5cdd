"""Memory that is free, but that the process still holds."""

import ctypes
import functools
import gc
from collections.abc import Callable


def release_memory() -> None:
    """Give freed memory back to the system, where it is glibc that keeps it.

    Batches of ever other shapes leave holes in the heap which add up to gigabytes.
    """
    gc.collect()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return None
