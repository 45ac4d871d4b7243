"""Uploads take none of the threads that answer everybody else, and no tenant takes all of theirs."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from remembrandt.serving.errors import TooManyRequestsError
from remembrandt.serving.http.intake import Intake
from tests.serving.test_mistakes import files
from tests.support.processes import wait_until
from tests.support.service import Service


@pytest.fixture
def intake() -> Iterator[Intake]:
    opened = Intake("test", threads=3, most=2)
    yield opened
    opened.close()


def test_a_tenant_has_only_so_much_under_way_and_others_are_served(intake: Intake) -> None:
    gate = threading.Event()

    async def ask() -> None:
        first = [asyncio.create_task(intake.run("alice", gate.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequestsError, match="being looked at"):
            await intake.run("alice", int)
        assert await intake.run("bob", int, "7") == 7
        gate.set()
        assert await asyncio.gather(*first) == [True, True]
        await asyncio.sleep(0)
        assert await intake.run("alice", int, "3") == 3

    asyncio.run(ask())


def test_the_place_of_a_client_that_left_is_free_when_its_thread_is(intake: Intake) -> None:
    gate = threading.Event()

    async def ask() -> None:
        begun = [threading.Event(), threading.Event()]

        def work(number: int) -> None:
            begun[number].set()
            gate.wait(10)

        tasks = [asyncio.create_task(intake.run("alice", work, number)) for number in range(2)]
        for event in begun:
            await asyncio.to_thread(event.wait, 10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        with pytest.raises(TooManyRequestsError):
            await intake.run("alice", int)
        gate.set()
        while intake._under_way:
            await asyncio.sleep(0.01)
        assert await intake.run("alice", int, "3") == 3

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_uploads_wait_in_threads_of_their_own(quiet: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service = quiet()
    alice, gate, names = service.tenant("alice"), threading.Event(), list[str]()

    def stage(*_: Any) -> tuple[int, int]:
        names.append(threading.current_thread().name)
        gate.wait(20)
        return 1, 1

    monkeypatch.setattr("remembrandt.serving.http.databases.stage", stage)
    with ThreadPoolExecutor(2) as clients:
        sent = [clients.submit(alice.post, "/v1/databases/upload", data={"name": name}, files=files()) for name in "ab"]
        wait_until(lambda: len(names) == 2, "two uploads are under way", 20)
        third = alice.post("/v1/databases/upload", data={"name": "c"}, files=files())
        assert third.status_code == 429 and third.headers["retry-after"]
        assert service.client.get("/readyz").status_code == 200
        gate.set()
        assert [own.result().status_code for own in sent] == [202, 202]
    assert all(name.startswith("uploads") for name in names)
