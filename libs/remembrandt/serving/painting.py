"""What a sampler deployment does: it draws pictures of all tenants, databases and settings together, and knows none.

One thread draws. While it does, more pictures gather, and they are the next batch.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from remembrandt.allocation import keep_freed_memory
from remembrandt.generation.cascade import CascadeGenerator, CascadeRequest, PairContext, stage_batch
from remembrandt.generation.contexts import FoundContext, context_of
from remembrandt.generation.grid import to_pixels
from remembrandt.generation.models import best_device, model_folder
from remembrandt.generation.requests import PictureRequest
from remembrandt.models.rdm.sampling import RdmSampler, SampleBatch, SampleSettings
from remembrandt.serving.config import ModelConfig
from remembrandt.serving.errors import DeadlineError
from remembrandt.serving.metrics import batch_drawn, queue_length, stage_done
from remembrandt.serving.retrieval import ModelContext, ModelRequest

Pixels = NDArray[np.uint8]
"""One picture, (S, S, 3)."""
OnPartial = Callable[[int, Pixels], None]
"""Told the number of a picture within its request, and what it is foreseen to be."""
_SIMILAR_STEPS = 2
"""Pictures are drawn together if none takes more times the steps of another."""


@dataclass(frozen=True)
class Drawing:
    """One picture to be drawn."""

    request: ModelRequest
    context: ModelContext


class Painter(Protocol):
    """A loaded model."""

    def paint(
        self,
        drawings: Sequence[Drawing],
        on_step: Callable[[int, int], None],
        on_picture: Callable[[int, int, Sequence[Pixels]], None] | None,
    ) -> list[Pixels]:
        """All pictures. `on_step` may raise to end it; `on_picture` is told now and then what they will be."""


class _Given(Exception):  # noqa: N818 - no failure: nobody waits for this batch any more
    """Nobody waits for the batch."""


@dataclass
class _Ticket:
    """One request's pictures, until they are drawn."""

    drawings: Sequence[Drawing]
    deadline: float
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[list[Pixels]]"
    on_partial: OnPartial | None
    pictures: list[Pixels] = field(default_factory=list)
    gone: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.gone and time.monotonic() < self.deadline


class Studio:
    """Draws what it is asked for in batches.

    Args:
        name: of the model, for metrics.
        load: gives the model. It is called in the thread that draws: each thread that computes has helpers of its own,
            and two such teams on the same cores make each other wait.
        max_batch: pictures that are drawn together.
        wait_seconds: how long an idle studio waits for more.
    """

    def __init__(self, name: str, load: Callable[[], Painter], max_batch: int, wait_seconds: float) -> None:
        self.name, self._max_batch, self._wait = name, max_batch, wait_seconds
        self._waiting: deque[tuple[_Ticket, int]] = deque()
        self._condition = threading.Condition()
        self._closed = False
        self.batches: deque[int] = deque(maxlen=1000)
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(load, loaded), name=f"studio-{name}", daemon=True)
        self._thread.start()
        loaded.result()

    async def draw(
        self, drawings: Sequence[Drawing], deadline_seconds: float, on_partial: OnPartial | None = None
    ) -> list[Pixels]:
        """The pictures, in order. Cancelling it gives them up: a batch that nobody waits for ends early.

        Raises:
            DeadlineError: they were not drawn in time.
            RemembrandtError: settings that the model cannot have.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(drawings, time.monotonic() + deadline_seconds, loop, loop.create_future(), on_partial)
        ticket.pictures = [np.zeros(0, np.uint8)] * len(drawings)
        with self._condition:
            self._waiting.extend((ticket, number) for number in range(len(drawings)))
            queue_length(self.name, len(self._waiting))
            self._condition.notify()
        try:
            async with asyncio.timeout(deadline_seconds):
                return await ticket.done
        except TimeoutError:
            raise DeadlineError(
                f"the pictures were not drawn within {deadline_seconds:.0f} s: ask for fewer, or for fewer steps"
            ) from None
        finally:
            ticket.gone = True

    def close(self) -> None:
        """Ends the thread after the batch that it draws."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    @property
    def length(self) -> int:
        """Pictures that wait."""
        return len(self._waiting)

    def _work(self, load: Callable[[], Painter], loaded: "Future[None]") -> None:
        try:
            self._painter = load()
        except BaseException as error:  # noqa: BLE001 - whoever made the studio is told
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while batch := self._next_batch():
            self._draw(batch)

    def _next_batch(self) -> list[tuple[_Ticket, int]]:
        with self._condition:
            while not self._waiting and not self._closed:
                self._condition.wait()
            until = time.monotonic() + self._wait
            while len(self._waiting) < self._max_batch and not self._closed:
                if (remaining := until - time.monotonic()) <= 0:
                    break
                self._condition.wait(remaining)
            batch = self._take()
            queue_length(self.name, len(self._waiting))
            closed = self._closed
        return batch if batch or closed else self._next_batch()

    def _take(self) -> list[tuple[_Ticket, int]]:
        """The next batch: whoever has waited longest, and those whose pictures take about as many steps.

        A batch ends as a whole, so that few steps beside many would wait for them.
        """
        batch: list[tuple[_Ticket, int]] = []
        later: deque[tuple[_Ticket, int]] = deque()
        fewest = most = 0
        while self._waiting and len(batch) < self._max_batch:
            ticket, number = self._waiting.popleft()
            if not ticket.is_wanted:
                continue
            steps = steps_of(ticket.drawings[number].request)
            if batch and max(most, steps) > _SIMILAR_STEPS * min(fewest, steps):
                later.append((ticket, number))
                continue
            fewest, most = (min(fewest, steps), max(most, steps)) if batch else (steps, steps)
            batch.append((ticket, number))
        later.extend(self._waiting)
        self._waiting = later
        return batch

    def _draw(self, batch: list[tuple[_Ticket, int]]) -> None:
        drawings = [ticket.drawings[number] for ticket, number in batch]
        watched = any(ticket.on_partial is not None for ticket, _ in batch)

        def on_step(done: int, total: int) -> None:
            if not any(ticket.is_wanted for ticket, _ in batch):
                raise _Given

        def on_picture(done: int, total: int, pictures: Sequence[Pixels]) -> None:
            for (ticket, number), picture in zip(batch, pictures, strict=True):
                if ticket.on_partial is not None and not ticket.gone:
                    ticket.loop.call_soon_threadsafe(ticket.on_partial, number, picture)

        start = time.perf_counter()
        try:
            pictures = self._painter.paint(drawings, on_step, on_picture if watched else None)
        except _Given:
            return
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits, not to this thread
            self._failed(batch, error)
            return
        seconds = time.perf_counter() - start
        self.batches.append(len(batch))
        for (ticket, number), picture in zip(batch, pictures, strict=True):
            ticket.pictures[number] = picture
        for ticket in {id(ticket): ticket for ticket, _ in batch}.values():
            if all(picture.size for picture in ticket.pictures):
                _settle(ticket, ticket.pictures)
        stage_done("sample", seconds)
        batch_drawn(self.name, len(batch))

    def _failed(self, batch: list[tuple[_Ticket, int]], error: Exception) -> None:
        """One by one, so that each request has its own answer."""
        tickets = list({id(ticket): ticket for ticket, _ in batch}.values())
        if len(tickets) == 1:
            tickets[0].gone = True
            _settle(tickets[0], error)
            return
        for own in tickets:
            self._draw([place for place in batch if place[0] is own])


def _settle(ticket: _Ticket, answer: list[Pixels] | Exception) -> None:
    def settle() -> None:
        if ticket.done.done():
            return
        if isinstance(answer, Exception):
            ticket.done.set_exception(answer)
        else:
            ticket.done.set_result(answer)

    if not ticket.loop.is_closed():
        ticket.loop.call_soon_threadsafe(settle)


class RdmPainter:
    """Draws with an RDM."""

    def __init__(self, config: ModelConfig) -> None:
        device, dtype = place(config)
        self._sampler = RdmSampler.load(model_folder(config.model), device, dtype)
        if config.compile:
            self._sampler.compile()

    def paint(
        self,
        drawings: Sequence[Drawing],
        on_step: Callable[[int, int], None],
        on_picture: Callable[[int, int, Sequence[Pixels]], None] | None,
    ) -> list[Pixels]:
        """As the protocol says."""
        requests = [drawing.request for drawing in drawings]
        contexts = [drawing.context for drawing in drawings]
        assert all(isinstance(own, FoundContext) for own in contexts)
        found = [own for own in contexts if isinstance(own, FoundContext)]
        settings = tuple(
            SampleSettings(own.guidance_scale, own.sampler) for own in requests if isinstance(own, PictureRequest)
        )
        batch = SampleBatch(context_of(self._sampler, found), tuple(own.seed for own in requests), settings)

        def foreseen(done: int, total: int, pixels_BCHW: torch.Tensor) -> None:
            assert on_picture is not None
            on_picture(done, total, to_pixels(pixels_BCHW))

        steps = max(own.sampler.num_inference_steps for own in settings)
        every = max(1, steps // 4)
        return to_pixels(self._sampler.sample(batch, None if on_picture is None else foreseen, every, on_step))


class CascadePainter:
    """Draws with the stages of a Re-Imagen, one after the other."""

    def __init__(self, config: ModelConfig) -> None:
        self._cascade = CascadeGenerator.load(config.model, *place(config)).cascade

    def paint(
        self,
        drawings: Sequence[Drawing],
        on_step: Callable[[int, int], None],
        on_picture: Callable[[int, int, Sequence[Pixels]], None] | None,
    ) -> list[Pixels]:
        """As the protocol says; what is foreseen are the pictures of the stage before."""
        requests = [own.request for own in drawings if isinstance(own.request, CascadeRequest)]
        contexts = [own.context for own in drawings if isinstance(own.context, PairContext)]
        stages = self._cascade.stages

        def batch_of(number: int, low_res_BCHW: torch.Tensor | None) -> Any:
            if on_picture is not None and low_res_BCHW is not None:
                on_picture(number, len(stages), to_pixels(low_res_BCHW))
            return stage_batch(requests, contexts, number, stages[number].config.neighbor_edge, low_res_BCHW)

        return to_pixels(self._cascade.sample(batch_of, on_step)[-1])


def steps_of(request: ModelRequest) -> int:
    """Of a picture; of a cascade, of the stage that has most."""
    if isinstance(request, CascadeRequest):
        return max(stage.sampler.num_inference_steps for stage in request.stages)
    return request.sampler.num_inference_steps


def open_painter(config: ModelConfig) -> Painter:
    """Loads a model.

    Raises:
        RemembrandtError: it cannot be loaded.
    """
    return RdmPainter(config) if config.kind == "rdm" else CascadePainter(config)


def place(config: ModelConfig) -> tuple[str, torch.dtype]:
    """Where the network goes."""
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return best_device(), dtype
