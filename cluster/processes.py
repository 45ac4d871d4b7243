"""Lists or ends the processes of one local cluster: those that carry its mark in their environment, and their children.

python cluster/processes.py list|end MARK
"""

import contextlib
import sys
from collections.abc import Callable

import psutil

VARIABLE = "REMEMBRANDT_LOCAL_CLUSTER"
PATIENCE_SECONDS = 3


def marked(mark: str) -> set[psutil.Process]:
    """Processes of this user with the mark, their descendants included: workers overwrite their own environment."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(VARIABLE) == mark:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def end(mark: str) -> None:
    """Asks them to end, and kills those that have not after some seconds; returns when none is left."""
    while processes := marked(mark):
        for process in processes:
            _signal(process.terminate)
        _, stubborn = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
        for process in stubborn:
            _signal(process.kill)
        psutil.wait_procs(stubborn, timeout=PATIENCE_SECONDS)


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


if __name__ == "__main__":
    command, mark = sys.argv[1:]
    if command == "end":
        end(mark)
    else:
        for process in sorted(marked(mark), key=lambda process: process.pid):
            print(process.pid, _title(process))
