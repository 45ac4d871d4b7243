"""P2's human protocol, ready for anyone: a page on which people rate pictures blind, and what their answers say.

The page is one file and needs no server: answers stay in the browser until they are saved as a file. Which method made
which picture is written in a key of its own, so that nobody who rates can see it.
"""

import html
import json
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from remembrandt.errors import SourceError
from remembrandt.evaluation.metrics import bootstrap
from remembrandt.evaluation.sheets import data_uri

QUESTIONS = {"faithful": "Is it the same thing as in the references?", "realistic": "Is it well drawn?"}


@dataclass(frozen=True)
class RatedPair:
    """One entity: its real pictures, and one of each method."""

    entity: str
    caption: str
    references: Sequence[Image.Image]
    pictures: Mapping[str, Image.Image]


def rating_page(pairs: Sequence[RatedPair], title: str, seed: int) -> tuple[str, dict[str, Any]]:
    """The page, and its key: {id of a picture: {entity, method}}. Order and sides are drawn by `seed`."""
    rng = np.random.default_rng(seed)
    key: dict[str, Any] = {}
    items = []
    for number in rng.permutation(len(pairs)):
        pair, shown = pairs[number], []
        methods = list(pair.pictures)
        for place in rng.permutation(len(methods)):
            name = secrets.token_hex(6)
            key[name] = {"entity": pair.entity, "method": methods[place]}
            shown.append(
                _PICTURE.format(name=name, source=data_uri(pair.pictures[methods[place]]), ask=_questions(name))
            )
        references = "".join(f'<img alt="reference" src="{data_uri(image)}">' for image in pair.references)
        items.append(_ITEM.format(caption=html.escape(pair.caption), references=references, pictures="".join(shown)))
    page = resources.files(__package__).joinpath("rating.html").read_text(encoding="utf-8")
    page = page.replace("TITLE", html.escape(title)).replace("ITEMS", "".join(items))
    return page.replace("COUNT", str(len(key) * len(QUESTIONS))), key


def summarise(key: Mapping[str, Any], files: Sequence[str | Path]) -> dict[str, Any]:
    """What people said: the share of yes for each method and question, with intervals over entities, and agreement.

    Raises:
        SourceError: a file that is none of this page's answers.
    """
    answers = [_answers(Path(file), key) for file in files]
    report: dict[str, Any] = {"raters": len(answers), "ratings": sum(map(len, answers))}
    for question in QUESTIONS:
        votes: dict[str, list[int]] = defaultdict(list)
        for given in answers:
            for name, replies in given.items():
                if question in replies:
                    votes[name].append(int(bool(replies[question])))
        by_method: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, own in votes.items():
            by_method[key[name]["method"]][key[name]["entity"]].append(float(np.mean(own)))
        report[question] = {
            method: asdict(bootstrap(np.array([np.mean(shares) for shares in entities.values()])))
            for method, entities in sorted(by_method.items())
        }
        report[f"{question}, agreement"] = fleiss_kappa(list(votes.values()))
    return report


def fleiss_kappa(votes: Sequence[Sequence[int]]) -> float | None:
    """Agreement beyond chance of yes-or-no votes (Fleiss 1971), for items with at least two votes; 1 is full agreement.

    None where no item has two votes, or all votes are the same.
    """
    several = [own for own in votes if len(own) >= 2]
    if not several:
        return None
    yes = np.array([sum(own) for own in several], dtype=float)
    count = np.array([len(own) for own in several], dtype=float)
    agreement = ((yes * (yes - 1) + (count - yes) * (count - yes - 1)) / (count * (count - 1))).mean()
    share = yes.sum() / count.sum()
    chance = share**2 + (1 - share) ** 2
    return None if chance == 1 else float((agreement - chance) / (1 - chance))


def _answers(path: Path, key: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    try:
        given: dict[str, dict[str, bool]] = json.loads(path.read_text(encoding="utf-8"))["answers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path} holds no ratings ({type(error).__name__}): save them from the page again") from None
    if unknown := [name for name in given if name not in key]:
        raise SourceError(f"{path} has ratings of another page (picture {unknown[0]}): use the key that lies beside it")
    return given


def _questions(name: str) -> str:
    return "".join(
        f"<fieldset><legend>{text}</legend>{_answer(name, question, 1)}{_answer(name, question, 0)}</fieldset>"
        for question, text in QUESTIONS.items()
    )


def _answer(name: str, question: str, value: int) -> str:
    mark = f'data-id="{name}" data-ask="{question}" value="{value}"'
    return f'<label><input type="radio" name="{name}-{question}" {mark}> {"yes" if value else "no"}</label>'


_PICTURE = '<figure><img alt="picture to rate" src="{source}"><figcaption>{ask}</figcaption></figure>'
_ITEM = """<section><h2>{caption}</h2>
<div class="row"><div class="references">{references}<p>references</p></div>{pictures}</div></section>"""
