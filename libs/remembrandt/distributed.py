"""What every distributed job needs from Ray: a connection, tasks with progress, and readable failures."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import ray
from ray.exceptions import RayError, RayTaskError
from tenacity import retry, retry_if_exception, stop_after_attempt

from remembrandt.errors import RemembrandtError, ServiceError

_IN_FLIGHT_PER_CPU = 2
_TRIED = "\nFailed to apply UDF"
_LATE = "timed out during startup"


def connect(*, show_workers: bool = False, dashboard: bool = False) -> None:
    """Joins the cluster that `RAY_ADDRESS` or the job names; without one, starts a local instance on this machine.

    With `show_workers` what the workers print appears here too, each line with its origin. A local instance has a
    dashboard only if asked: it serves the state API, which Ray Train watches its runs by.

    Raises:
        ServiceError: an address is given and nothing answers there.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side warns of what Ray Data itself does
    if ray.is_initialized():
        return
    try:
        _start(log_to_driver=show_workers, **_local_size(dashboard))
    except Exception as error:  # this very class is what Ray raises when its processes are late
        raise _no_ray(error) from error


@retry(retry=retry_if_exception(lambda error: _LATE in str(error)), stop=stop_after_attempt(3), reraise=True)
def _start(**options: Any) -> None:
    """Ray gives its processes half a minute to come up; on a busy machine they need another try."""
    try:
        ray.init(logging_level=logging.WARNING, **options)
    except Exception:
        ray.shutdown()
        raise


def _no_ray(error: Exception) -> ServiceError:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return ServiceError(f"no Ray cluster answers at {address}: start one, or unset RAY_ADDRESS to use this machine")
    reason = " ".join(str(error).split())[:200]
    return ServiceError(f"Ray did not start on this machine ({reason}): try again when it is less busy")


def _local_size(dashboard: bool) -> dict[str, Any]:
    """Size of a local instance: `REMEMBRANDT_RAY_CPUS` and `REMEMBRANDT_RAY_OBJECT_STORE_MB`, else Ray's own choice."""
    if os.environ.get("RAY_ADDRESS"):
        return {}
    size: dict[str, Any] = {"include_dashboard": dashboard}
    if cpus := os.environ.get("REMEMBRANDT_RAY_CPUS"):
        size["num_cpus"] = int(cpus)
    if megabytes := os.environ.get("REMEMBRANDT_RAY_OBJECT_STORE_MB"):
        size["object_store_memory"] = int(megabytes) * 1_000_000
    return size


def num_cores() -> int:
    """Cores that this process may use."""
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count() or 1


def cores_of_node() -> int:
    """Cores of this node that Ray may use: in a container fewer than there are."""
    own = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == own), 0.0)
    return max(1, min(num_cores(), int(cpus)))


def run_tasks(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], **options: Any
) -> Iterator[tuple[int, Any]]:
    """Runs one Ray task a tuple of arguments, at most two a CPU in flight; yields (position, result) as they finish.

    Raises:
        RemembrandtError: what a task raised, without Ray's wrapping.
    """
    remote = ray.remote(function).options(**options)
    limit = max(2, _IN_FLIGHT_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(enumerate(arguments))[::-1]
    running: dict[ray.ObjectRef[Any], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                position, args = waiting.pop()
                running[remote.remote(*args)] = position
            (done,), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)
    except RayError as error:
        raise plain_error(error) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def plain_error(error: BaseException) -> BaseException:
    """The RemembrandtError inside what Ray raised, or the error itself if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RemembrandtError):
            return _without_task(seen)
        inner = getattr(seen, "cause", None)
        seen = inner if isinstance(inner, BaseException) and inner is not seen else seen.__cause__
    return error


def quiet_ray_data() -> None:
    """Ray Data without bars and messages: a job's own progress line says it, and failures come as they were raised.

    By default Ray Data puts another exception around what a function of ours raises, and the inner one is lost on its
    way to the driver.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def num_gpus() -> int:
    """GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def num_cpus() -> int:
    """Logical CPUs of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _without_task(error: RemembrandtError) -> BaseException:
    """Ray makes a class that is both a task error and the cause's class; its text is a whole traceback.

    Ray Data writes into the cause how often it tried.
    """
    if not isinstance(error, RayTaskError):
        return error
    sentence, _, tried = str(error.cause).partition(_TRIED)
    if tried:
        error.cause.args = (sentence,)
    return error.cause
