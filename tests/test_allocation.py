"""What a process that computes does with memory that it frees."""

import subprocess
import sys

import pytest

_KEPT = """
import ctypes
from remembrandt.allocation import keep_freed_memory
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
layers = [libc.malloc(20_000_000) for _ in range(10)]
for layer in layers:
    libc.free(layer)
print(libc.mallinfo2().fordblks)
"""


def free_in_the_process(call: str) -> int:
    """Bytes that a process has at hand for its next allocations after ten of 20 MB were freed."""
    done = subprocess.run([sys.executable, "-c", _KEPT.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_freed_memory_is_kept_for_what_comes_next() -> None:
    assert free_in_the_process("") < 50_000_000
    assert free_in_the_process("keep_freed_memory()") >= 200_000_000
