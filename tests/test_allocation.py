"""What a process that computes does with memory that it frees."""

import subprocess
import sys

import pytest

_FAULTS = """
import resource, torch
from remembrandt.allocation import keep_freed_memory
{call}
def layers():
    kept = [torch.zeros(300_000 + 10_000 * number) for number in range(40)]
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    by_itself, kept = faults(""), faults("keep_freed_memory()")
    assert by_itself > 20_000 and kept < by_itself / 20
