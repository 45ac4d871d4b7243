"""A studio draws for everybody at once, and is told apart by nobody."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from remembrandt.diffusion.samplers import SamplerConfig
from remembrandt.errors import ConfigError
from remembrandt.generation.requests import PictureRequest
from remembrandt.serving.coalescing import Coalescer
from remembrandt.serving.errors import DeadlineError
from remembrandt.serving.painting import Drawing, Pixels, Studio


class Slow:
    """A painter that takes a while a step, and gives pictures of the colour of their seed."""

    def __init__(self, steps: int = 5, seconds: float = 0.02) -> None:
        self.steps, self.seconds, self.batches = steps, seconds, list[list[int]]()
        self.begun = threading.Event()
        self.steps_done = 0

    def paint(
        self,
        drawings: Sequence[Drawing],
        on_step: Callable[[int, int], None],
        on_picture: Callable[[int, int, Sequence[Pixels]], None] | None,
    ) -> list[Pixels]:
        seeds = [drawing.request.seed for drawing in drawings]
        self.batches.append(seeds)
        self.begun.set()
        if 99 in seeds:
            raise ConfigError("99 cannot be drawn")
        made = [np.full((2, 2, 3), seed % 256, dtype=np.uint8) for seed in seeds]
        for step in range(self.steps):
            time.sleep(self.seconds)
            self.steps_done += 1
            on_step(step + 1, self.steps)
            if on_picture is not None:
                on_picture(step + 1, self.steps, made)
        return made


def drawings(*seeds: int, steps: int = 25) -> list[Drawing]:
    sampler = SamplerConfig(solver="ddim", num_inference_steps=steps)
    return [Drawing(PictureRequest(seed=seed, sampler=sampler), None) for seed in seeds]  # type: ignore[arg-type]


@pytest.fixture
def painter() -> Slow:
    return Slow()


@pytest.fixture
def studio(painter: Slow) -> Iterator[Studio]:
    opened = Studio("test", lambda: painter, 4, 0.01)
    yield opened
    opened.close()


def colours(pictures: list[Pixels]) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in pictures]


def test_requests_that_come_together_are_drawn_together(studio: Studio, painter: Slow) -> None:
    async def ask() -> list[list[Pixels]]:
        return await asyncio.gather(*(studio.draw(drawings(seed), 10) for seed in range(1, 9)))

    assert [colours(own) for own in asyncio.run(ask())] == [[seed] for seed in range(1, 9)]
    assert len(painter.batches) <= 3 and max(map(len, painter.batches)) == 4


def test_few_steps_do_not_wait_for_many(studio: Studio, painter: Slow) -> None:
    async def ask() -> None:
        first = asyncio.create_task(studio.draw(drawings(1), 10))
        await asyncio.to_thread(painter.begun.wait, 5)
        asked = ((2, 250), (3, 25), (4, 130), (5, 50), (6, 12))
        await asyncio.gather(first, *(studio.draw(drawings(seed, steps=steps), 10) for seed, steps in asked))

    asyncio.run(ask())
    assert painter.batches == [[1], [2, 4], [3, 5], [6]]


def test_a_request_larger_than_a_batch_comes_back_whole_and_in_order(studio: Studio) -> None:
    assert colours(asyncio.run(studio.draw(drawings(*range(1, 12)), 10))) == list(range(1, 12))


def test_a_batch_that_nobody_waits_for_ends_early(studio: Studio, painter: Slow) -> None:
    painter.steps = 500

    async def leave() -> None:
        task = asyncio.create_task(studio.draw(drawings(1), 30))
        await asyncio.to_thread(painter.begun.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        painter.steps = 1
        await studio.draw(drawings(2), 60)
        assert painter.steps_done < 500

    asyncio.run(leave())


def test_what_is_given_up_while_it_waits_is_not_drawn(studio: Studio, painter: Slow) -> None:
    async def leave() -> None:
        painter.steps = 50
        first = asyncio.create_task(studio.draw(drawings(1, 2, 3, 4), 10))
        await asyncio.to_thread(painter.begun.wait, 5)
        second = asyncio.create_task(studio.draw(drawings(5), 10))
        await asyncio.sleep(0.01)
        second.cancel()
        await first
        await studio.draw(drawings(6), 10)

    asyncio.run(leave())
    assert [5] not in painter.batches and all(5 not in own for own in painter.batches)


def test_a_deadline_ends_a_request_with_a_sentence(studio: Studio, painter: Slow) -> None:
    painter.steps = 500
    with pytest.raises(DeadlineError, match="not drawn within"):
        asyncio.run(studio.draw(drawings(1), 0.1))


def test_a_mistake_of_one_request_does_not_hurt_the_others(studio: Studio) -> None:
    async def ask() -> list[list[Pixels] | BaseException]:
        return await asyncio.gather(*(studio.draw(drawings(seed), 10) for seed in (1, 99, 3)), return_exceptions=True)

    first, bad, third = asyncio.run(ask())
    assert isinstance(bad, ConfigError)
    assert not isinstance(first, BaseException) and not isinstance(third, BaseException)
    assert colours(first) == [1] and colours(third) == [3]


def test_foreseen_pictures_reach_whoever_asked_for_them(studio: Studio) -> None:
    told: list[tuple[int, int]] = []

    async def ask() -> None:
        watched = studio.draw(drawings(7, 8), 10, lambda number, pixels: told.append((number, int(pixels[0, 0, 0]))))
        await asyncio.gather(watched, studio.draw(drawings(1), 10))

    asyncio.run(ask())
    assert {(0, 7), (1, 8)} == set(told)


def test_a_caller_alone_is_served_at_once_and_many_are_served_together() -> None:
    sizes: list[int] = []

    async def work(asked: list[int]) -> list[int]:
        sizes.append(len(asked))
        await asyncio.sleep(0.02)
        return [own * 2 for own in asked]

    async def ask() -> list[int]:
        together: Coalescer[int, int] = Coalescer(work, 16)
        assert await together.submit(21) == 42
        return await asyncio.gather(*(together.submit(number) for number in range(40)))

    assert asyncio.run(ask()) == [number * 2 for number in range(40)]
    assert sizes[0] == 1 and max(sizes) == 16 and len(sizes) <= 6


def test_what_fails_fails_for_all_of_its_list() -> None:
    async def work(asked: list[int]) -> list[int]:
        raise ConfigError("no")

    async def ask() -> None:
        together: Coalescer[int, int] = Coalescer(work, 16)
        found = await asyncio.gather(together.submit(1), together.submit(2), return_exceptions=True)
        assert all(isinstance(own, ConfigError) for own in found)

    asyncio.run(ask())
