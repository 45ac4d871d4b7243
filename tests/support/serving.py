"""A service on Ray Serve, and its replicas' processes."""

import os
import signal

import psutil


def replicas(deployment: str) -> list[psutil.Process]:
    """Processes of a deployment's replicas, oldest first."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "create_time"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::ServeReplica") and f":{deployment}" in title:
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


def kill(process: psutil.Process) -> None:
    """At once, and without a chance to say so."""
    os.kill(process.pid, signal.SIGKILL)
