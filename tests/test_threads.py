"""Threads that compute without helpers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
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


MULTIPLYING = """
from concurrent.futures import ThreadPoolExecutor
import psutil, torch
from remembrandt.threads import compute_alone

def woken():
    before = threads()
    torch.ones(600, 600) @ torch.ones(600, 600)
    return len(threads() - before)

def threads():
    return {thread.id for thread in psutil.Process().threads()}

torch.set_num_threads(2)
for initializer in (None, compute_alone):
    with ThreadPoolExecutor(1, initializer=initializer) as pool:
        print(pool.submit(woken).result())
"""


def test_products_of_matrices_wake_no_helper() -> None:
    """MKL, which torch multiplies with on x86, keeps a number of its own. A helper lives as long as its thread.

    In a process of its own: what else a test session runs has threads that begin when they like.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ended = subprocess.run(
        [sys.executable, "-c", MULTIPLYING], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["1", "0"]
