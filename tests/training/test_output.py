"""How a finished model goes to its place."""

from pathlib import Path

from remembrandt.models.folders import FACTS
from remembrandt.training.output import REPORT, publish_model


def test_a_model_replaces_the_older_one_and_nothing_else_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")

    def publish(*names: str) -> None:
        def save(folder: Path) -> None:
            for name in (*names, FACTS):
                (folder / name).write_text("{}")

        publish_model(str(tmp_path), save, {}, {})

    publish("first", "both")
    publish("both", "second")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.jpg", "both", "second", FACTS, REPORT}
