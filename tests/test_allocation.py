"""What a process that computes does with memory that it frees."""

import platform
import subprocess
import sys

import pytest

_KEPT = """
import ctypes, threading
from remembrandt.allocation import keep_freed_memory
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
def compute():
    for layer in [libc.malloc(20_000_000) for _ in range(10)]:
        libc.free(layer)
if {in_thread}:
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
else:
    compute()
print(libc.mallinfo2().fordblks)
"""


def free_in_the_process(call: str, in_thread: bool) -> int:
    """Bytes that a process has at hand for its next allocations after ten of 20 MB were freed."""
    code = _KEPT.format(call=call, in_thread=in_thread)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.parametrize("in_thread", [False, True])
def test_freed_memory_is_kept_for_what_comes_next(in_thread: bool) -> None:
    assert free_in_the_process("", in_thread) < 100_000_000
    assert free_in_the_process("keep_freed_memory()", in_thread) >= 200_000_000
