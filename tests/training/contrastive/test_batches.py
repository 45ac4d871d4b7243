"""What a training step sees."""

from collections import Counter

import numpy as np
import pytest

from remembrandt.data.sources import WebdatasetConfig
from remembrandt.errors import SourceError
from remembrandt.training.contrastive.config import DataConfig
from remembrandt.training.contrastive.data import BatchPlan, Pair, trained_on, vary_caption


def make_pair(entity: str, style: str, licence: str = "MIT", held_out: bool = False) -> Pair:
    return Pair(f"{entity}_{style}", entity, style, licence, "", held_out, (entity, f"{entity}, red, round, shiny"))


def make_config(**options: object) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"kind": "webdataset", "uri": "unused"}], **options})


PAIRS = [make_pair(f"entity-{number}", style) for number in range(20) for style in ("flat", "line", "solid")]


def test_config_takes_any_source() -> None:
    assert isinstance(make_config().sources[0], WebdatasetConfig)


def test_batches_depend_on_seed_and_step_alone() -> None:
    one, other = (BatchPlan(PAIRS, make_config(), 8, 2, seed=3) for _ in range(2))
    other.draw(0)
    np.testing.assert_array_equal(one.draw(5).rows_PV, other.draw(5).rows_PV)
    assert one.draw(5).captions == other.draw(5).captions
    assert not np.array_equal(one.draw(5).rows_PV, one.draw(6).rows_PV)
    assert not np.array_equal(one.draw(5).rows_PV, BatchPlan(PAIRS, make_config(), 8, 2, seed=4).draw(5).rows_PV)


def test_views_show_one_entity_in_different_styles() -> None:
    batch = BatchPlan(PAIRS, make_config(), 20, 3, seed=0).draw(0)
    for entity, rows in zip(batch.entities_P, batch.rows_PV, strict=True):
        assert len({PAIRS[row].style for row in rows}) == 3
        assert {PAIRS[row].entity for row in rows} == {BatchPlan(PAIRS, make_config(), 20, 3, 0).entity_names[entity]}


def test_an_entity_drawn_once_fills_its_views_with_that_drawing() -> None:
    batch = BatchPlan([make_pair("lone", "flat")], make_config(), 4, 2, seed=0).draw(0)
    assert batch.rows_PV.tolist() == [[0, 0]]


def test_workers_share_the_batch_without_overlap() -> None:
    batch = BatchPlan(PAIRS, make_config(), 12, 2, seed=0).draw(7)
    shares = [batch.share(rank, 3) for rank in range(3)]
    assert sorted(row for share in shares for row in share.rows_PV.flat) == sorted(batch.rows_PV.flat)
    assert Counter(len(share.captions) for share in shares) == {4: 3}


@pytest.mark.parametrize(
    "pair",
    [
        make_pair("a", "flat", held_out=True),
        make_pair("a", "line"),
        make_pair("a", "sketch"),
        make_pair("a", "flat", licence="CC-BY-SA-4.0"),
    ],
)
def test_held_out_entities_unseen_styles_and_other_licences_are_never_trained_on(pair: Pair) -> None:
    config = make_config(styles=["flat", "line"], licences=["MIT"], unseen_style="line")
    assert trained_on(make_pair("a", "flat"), config)
    assert not trained_on(pair, config)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(SourceError, match="check data"):
        BatchPlan(PAIRS, make_config(styles=["oil painting"]), 4, 2, seed=0)


def test_captions_vary_but_stay_with_the_image() -> None:
    rng = np.random.default_rng(0)
    captions = ("red fox", "red fox, animal, forest, sly", "vixen, in a flat style")
    texts = Counter(vary_caption(captions, rng) for _ in range(500))
    words = {word.strip() for caption in captions for word in caption.split(",")}
    assert len(texts) > 10
    assert texts["red fox"] > 100
    assert {word.strip() for text in texts for word in text.split(",")} <= words
