from pathlib import Path

import pytest

from remembrandt.storage import open_store
from remembrandt.training.journal import Journal, read_journal


def test_a_run_that_goes_on_has_every_step_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = Journal(store, 0)
    for step in range(6):
        first.append(step, {"loss": step / 3})
        if step in (1, 3):
            first.close_chunk()
    first.close_chunk()
    # Killed; the checkpoint of step 4 is the last that was taken.
    second = Journal(store, 4)
    for step in range(4, 7):
        second.append(step, {"loss": step / 3})
    second.close_chunk()
    found = read_journal(str(tmp_path))
    assert [line["step"] for line in found] == list(range(7))
    assert [line["loss"] for line in found] == [step / 3 for step in range(7)]


def test_a_missing_step_is_an_error_of_ours(tmp_path: Path) -> None:
    journal = Journal(open_store(tmp_path), 3)
    with pytest.raises(AssertionError, match="missing"):
        journal.append(5, {"loss": 0.0})
