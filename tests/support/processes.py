"""Servers that tests start: free ports, waiting with a deadline, and an end that leaves nothing behind."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

# Below Linux's ephemeral range, so that no outgoing connection takes a port between choosing and binding it. Shuffled,
# and each is given once: a port may be chosen long before its server starts.
_PORTS = iter(random.SystemRandom().sample(range(20_000, 32_000), 12_000))


def free_ports(count: int) -> list[int]:
    """TCP ports that nothing on 127.0.0.1 listens on now, and that this process was not given before."""
    found: list[int] = []
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"fewer than {count} free ports on 127.0.0.1")


def missing(message: str) -> None:
    """A tool that a test needs is not there: the test is skipped, and in CI, which installs it, fails."""
    pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 60.0, interval: float = 0.1) -> None:
    """Returns as soon as `condition` holds; an AssertionError that names `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout:.0f} s")
        time.sleep(interval)


def listens(port: int) -> bool:
    """Whether something accepts connections on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A child process in a process group of its own, which is ended as a whole.

    Subclasses (or callers) give the command and say when it is ready. `kill` is SIGKILL, as a power cut; `stop` asks
    first. `restart` brings it up again with the same command, so on the same ports and data.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        ready_timeout: float = 90.0,
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self._ready = ready
        self._environment = dict(os.environ if environment is None else environment)
        self._ready_timeout = ready_timeout
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Starts it and returns once it is ready. An AssertionError with the end of its log if it ends before."""
        assert not self.running, f"{self.command[0]} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        try:
            wait_until(self._ready_or_dead, f"{self.command[0]} ready", self._ready_timeout)
        except BaseException:
            self.kill()
            raise
        if not self.running:
            raise AssertionError(f"{self.command[0]} ended while starting:\n{self._tail()}")

    def kill(self) -> None:
        """SIGKILL to the whole group; returns when the process is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=30)

    def stop(self, patience: float = 20.0) -> None:
        """SIGTERM, and SIGKILL to what is left after `patience` seconds."""
        if self.running:
            assert self._process is not None
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=patience)
        self.kill()

    def restart(self) -> None:
        """Stops it if it runs, and starts it again."""
        self.stop()
        self.start()

    def _ready_or_dead(self) -> bool:
        return not self.running or self._ready()

    def _signal(self, number: int) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]
