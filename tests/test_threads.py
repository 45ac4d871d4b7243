"""Threads that compute without helpers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
import psutil
import pytest
import torch

from remembrandt.threads import compute_alone

FLOATS = 1_000_000


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def both() -> tuple[int, int]:
    torch.ones(FLOATS).add(1)
    return torch.get_num_threads(), faiss.omp_get_max_threads()


def test_only_the_calling_thread_loses_its_helpers(two_threads: None) -> None:
    with ThreadPoolExecutor(1) as pool:
        searches = pool.submit(faiss.omp_get_max_threads).result()
    with ThreadPoolExecutor(1, initializer=compute_alone) as pool:
        assert pool.submit(both).result() == (1, searches)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
    assert both() == (2, 2)


def test_products_of_matrices_wake_no_helper(two_threads: None) -> None:
    """MKL, which torch multiplies with on x86, keeps a number of its own. A helper lives as long as its thread."""

    def woken(size: int) -> int:
        before = threads()
        torch.ones(size, size) @ torch.ones(size, size)
        return len(threads() - before)

    def threads() -> set[int]:
        """By number: one of an earlier pool may end meanwhile."""
        return {thread.id for thread in psutil.Process().threads()}

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(woken, 600).result() == 1
    with ThreadPoolExecutor(1, initializer=compute_alone) as pool:
        assert pool.submit(woken, 600).result() == 0
