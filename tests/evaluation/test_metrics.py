import numpy as np
import pytest

from remembrandt.evaluation.metrics import bootstrap, cosine, frechet_distance, precision_recall, train_probe


def normal(count: int, dim: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, dim))


def test_frechet_distance_of_known_normals() -> None:
    assert frechet_distance(normal(20_000, 4, 0), normal(20_000, 4, 1)) == pytest.approx(0, abs=0.02)
    assert frechet_distance(normal(20_000, 4, 0), normal(20_000, 4, 1, mean=1.0)) == pytest.approx(4, abs=0.1)
    # Equal means, σ 1 against σ 3: 4 · (3 - 1)².
    assert frechet_distance(normal(20_000, 4, 0), normal(20_000, 4, 1, scale=3.0)) == pytest.approx(16, rel=0.03)
    assert frechet_distance(normal(50, 80, 0), normal(50, 80, 1)) > 0  # fewer pictures than features


def test_precision_falls_for_outliers_and_recall_for_copies() -> None:
    real = normal(400, 3, 0)
    same, narrow, wide = (precision_recall(real, normal(300, 3, 1, scale=scale)) for scale in (1.0, 0.2, 4.0))
    assert min(same[0].mean, same[1].mean) > 0.85
    assert narrow[0].low > 0.9 and narrow[1].high < 0.5
    assert wide[0].high < 0.5
    assert (same[0].count, same[1].count) == (300, 400), "precision is of samples, recall of real pictures"


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        interval = bootstrap(rng.normal(2.0, 1.0, 60), seed=trial)
        covered += interval.low <= 2.0 <= interval.high
    assert 88 <= covered <= 99
    assert not bootstrap(np.zeros(10) + 1).overlaps(bootstrap(np.zeros(10) + 2))


def test_cosine_is_row_by_row() -> None:
    assert cosine(np.eye(2), np.array([[3.0, 0.0], [1.0, 0.0]])).tolist() == [1.0, 0.0]


def test_a_probe_tells_what_can_be_told() -> None:
    features = np.concatenate([normal(100, 5, 0, mean=2.0), normal(100, 5, 1, mean=-2.0)])
    predict, accuracy = train_probe(features, ["a"] * 100 + ["b"] * 100)
    assert accuracy > 0.95 and predict(np.full((1, 5), 2.0)) == ["a"]
    labels = np.random.default_rng(0).choice(["a", "b"], 200).tolist()
    assert train_probe(features, labels)[1] < 0.75
