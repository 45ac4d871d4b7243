"""Ten clients for two and a half minutes, while replicas are killed and the service is upgraded under them."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from ray import serve

from services.app import build
from tests.services.test_serve import Running, running, service_args  # noqa: F401 - a fixture is used by its name
from tests.support.serving import kill, replicas

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]
CLIENTS, SECONDS, KILL_EVERY = 10, 150, 10
NAME = {"name": "remembrandt", "route_prefix": "/"}


def memory(names: tuple[str, ...]) -> dict[str, int]:
    """Bytes of what lives through it, proxies and the controller, by title and process id.

    Anonymous pages alone: those of libraries' files come and go as the kernel likes. A child that has not yet become
    the program it was forked for is not counted beside its parent.
    """
    titles = {p.pid: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    lasting = {pid: title for pid, title in titles.items() if any(name in title for name in names)}
    return {
        f"{title.split()[0].split('.')[0]} {pid}": _anonymous_bytes(pid)
        for pid, title in lasting.items()
        if psutil.Process(pid).ppid() not in lasting
    }


def _anonymous_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith(("RssAnon", "VmSwap")))


def test_clients_notice_neither_deaths_nor_an_upgrade(running: Running, service_args: dict) -> None:  # type: ignore[type-arg] # noqa: F811
    stop, seen, failed, upgrade = threading.Event(), Counter[int](), list[str](), threading.Thread()
    lasting = ("ray::ProxyActor", "ray::HAProxyManager", "ray::ServeController")

    def client(number: int) -> None:
        draw = random.Random(number)
        http = running.http
        while not stop.is_set():
            if draw.random() < 0.5:
                path, body = "/v1/databases/drawings/search", {"text": f"red {draw.random()}", "k": 5}
            else:
                path, body = (
                    "/v1/images/generations",
                    {"prompt": "a red circle", "steps": 10, "seed": draw.randrange(99)},
                )
            try:
                answer = http.post(path, json=body)
            except httpx.HTTPError as error:
                failed.append(f"{path}: {error!r}")
                continue
            seen[answer.status_code] += 1
            if answer.status_code == 429:
                time.sleep(float(answer.headers["retry-after"]))
            elif answer.status_code != 200:
                failed.append(f"{path}: {answer.status_code} {answer.text[:200]}")

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        start, kills, before = time.monotonic(), 0, dict[str, int]()
        while time.monotonic() - start < SECONDS:
            time.sleep(KILL_EVERY)
            deployment = ("Sampler-rdm", "Retrieval")[kills % 2]
            if alive := replicas(deployment):
                kill(alive[0])
                kills += 1
            if kills == 3:
                before = memory(lasting)
            if kills == 6:
                changed = build({**service_args, "deadline_seconds": 119.0})
                upgrade = threading.Thread(target=serve.run, args=(changed,), kwargs=NAME)
                upgrade.start()
        upgrade.join()
        stop.set()
        for own in clients:
            own.result()
    after = memory(lasting)
    print(f"answers {dict(seen)}, {kills} kills, bytes {before} → {after}")
    assert not failed, failed[:5]
    assert kills >= 8 and seen[200] > 100
    assert after.keys() == before.keys() and len(after) >= 3
    assert sum(after.values()) < 1.25 * sum(before.values())
