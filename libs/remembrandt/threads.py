"""Which threads of a process compute with helpers.

OpenMP gives every thread that computes a team of its own. As soon as the teams of a process together have more threads
than it has cores, their members no longer wait actively for each other but sleep between any two operations: on two
cores a training step takes 1.1 to 1.2 times, a pass over one picture twice as long, for as long as both teams live.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController


def compute_alone() -> None:
    """From here on torch computes without helpers in the calling thread; other threads are left as they are.

    For threads beside the one that trains or draws: the initialiser of their pool.
    """
    torch.get_num_threads()  # at its first use in a thread torch gives it the number that holds for the process
    _openmp_of_torch().limit(limits=1)
    if (limit_mkl := _mkl_of_torch()) is not None:
        limit_mkl(1)


@cache
def _openmp_of_torch() -> ThreadpoolController:
    """FAISS may have its own, with threads of their own number; a system's is everybody's."""
    loaded = ThreadpoolController().select(user_api="openmp")
    folder = Path(torch.__file__).parent
    own = [found["filepath"] for found in loaded.info() if _is_within(Path(found["filepath"]), folder)]
    return loaded.select(filepath=own) if own else loaded


@cache
def _mkl_of_torch() -> Callable[[int], int] | None:
    """MKL asks OpenMP for the number that it was told. It lies within torch, where threadpoolctl does not look."""
    built = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")
    found = (getattr(ctypes.CDLL(str(file)), "MKL_Set_Num_Threads_Local", None) for file in built)
    return next(found, None)


def _is_within(file: Path, package: Path) -> bool:
    return file.is_relative_to(package) or file.is_relative_to(package.with_name(f"{package.name}.libs"))
