"""How a process that computes gets its memory on a CPU: what glibc does by itself costs a sixth of a step."""

import ctypes

OWN_ARENAS = {"MALLOC_ARENA_MAX": "1024"}
"""Environment of a process that computes with several threads beside many others.

glibc gives the first eight threads a core an arena each to allocate from, and lets later ones share. Where two threads
of one parallel region share one, they wait for each other at every allocation, and a step takes 1.6 times as long.
"""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_HEAP = 64 << 20
"""A thread's arena is made of such, and an empty one is given back unless more than all of it is to stay."""
_LARGEST_FROM_HEAP = 32 << 20
_KEPT = (1 << 31) - 1


def keep_freed_memory() -> None:
    """From here on, this process keeps what it frees (up to 2 GiB) for its next allocations.

    By itself glibc gives the activations of a layer back to the system when they are freed, and each page that the next
    layer writes is a fault: ten thousand in a step of rdm-small. Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST_FROM_HEAP)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    mallopt(_TOP_PAD, _HEAP)
