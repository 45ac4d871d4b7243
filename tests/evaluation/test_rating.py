"""The rating page hides who made what, and what people say is counted."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from remembrandt.errors import SourceError
from remembrandt.evaluation.rating import QUESTIONS, RatedPair, fleiss_kappa, rating_page, summarise


def pairs(count: int) -> list[RatedPair]:
    def plain(colour: str) -> Image.Image:
        return Image.new("RGB", (8, 8), colour)

    return [
        RatedPair(f"thing-{n}", f"<thing> {n}", [plain("white")], {"ours": plain("red"), "theirs": plain("blue")})
        for n in range(count)
    ]


def test_a_page_has_every_picture_once_and_names_no_method() -> None:
    page, key = rating_page(pairs(12), "A & B", seed=3)
    assert len(key) == 24 and {entry["method"] for entry in key.values()} == {"ours", "theirs"}
    for name in key:
        assert page.count(f'data-id="{name}"') == 2 * len(QUESTIONS)
    assert "ours" not in page and "theirs" not in page and "thing-3" not in page
    assert "A &amp; B" in page and "&lt;thing&gt; 3" in page and "COUNT" not in page and "ITEMS" not in page
    left = [key[name]["method"] for name in dict.fromkeys(re.findall(r'data-id="(\w+)"', page))][::2]
    assert set(left) == {"ours", "theirs"}, "sides are mixed"


def test_answers_become_shares_and_agreement(tmp_path: Path) -> None:
    _, key = rating_page(pairs(20), "page", seed=0)
    files = []
    for rater in range(3):
        answers = {
            name: {"faithful": entry["method"] == "ours", "realistic": int(entry["entity"].split("-")[1]) % 2 == 0}
            for name, entry in key.items()
        }
        if rater == 2:
            del answers[next(iter(answers))]
        files.append(tmp_path / f"{rater}.json")
        files[-1].write_text(json.dumps({"answers": answers}))
    report = summarise(key, files)
    assert report["raters"] == 3 and report["ratings"] == 119
    assert report["faithful"]["ours"]["mean"] == 1 and report["faithful"]["theirs"]["mean"] == 0
    assert report["realistic"]["ours"]["mean"] == pytest.approx(0.5) == report["realistic"]["theirs"]["mean"]
    assert report["faithful, agreement"] == report["realistic, agreement"] == pytest.approx(1)


def test_agreement_is_that_of_chance_for_contradicting_votes() -> None:
    assert fleiss_kappa([[1, 1], [0, 0]]) == pytest.approx(1)
    assert fleiss_kappa([[1, 0]] * 8) == pytest.approx(-1)
    assert fleiss_kappa([[1, 1], [1, 0], [0, 1], [0, 0]]) == pytest.approx(0)
    assert fleiss_kappa([[1], [0]]) is None and fleiss_kappa([[1, 1], [1, 1]]) is None


def test_answers_of_another_page_are_refused(tmp_path: Path) -> None:
    _, key = rating_page(pairs(2), "page", seed=0)
    (tmp_path / "other.json").write_text(json.dumps({"answers": {"abc": {"faithful": True}}}))
    with pytest.raises(SourceError, match="of another page"):
        summarise(key, [tmp_path / "other.json"])
    (tmp_path / "broken.json").write_text("[]")
    with pytest.raises(SourceError, match="holds no ratings"):
        summarise(key, [tmp_path / "broken.json"])
