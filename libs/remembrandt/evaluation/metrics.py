"""How good and how varied samples are, with intervals.

Letters in names: N real pictures, M samples, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, by bootstrap over `count` independent values."""

    mean: float
    low: float
    high: float
    count: int

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two intervals share a value."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.count})"


def bootstrap(values_M: Values, seed: int = 0) -> Interval:
    """Mean of independent values, with the percentile interval of 2,000 resamples."""
    values = np.asarray(values_M, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = rng.choice(values, size=(_RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def cosine(a_MD: Values, b_MD: Values) -> NDArray[np.float64]:
    """Cosine similarity (M,) row by row."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a_MD, b_MD))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, 1e-12)


def frechet_distance(real_ND: Values, samples_MD: Values) -> float:
    """Distance of two normal distributions fitted to features (Heusel et al. 2017, Eq. 6).

    On features other than Inception's it cannot be compared with published FID; and it falls with the number of
    pictures, so compare only equal numbers.
    """
    means, covariances = zip(*(_moments(x) for x in (real_ND, samples_MD)), strict=True)
    # tr √(AB) = tr √(√A B √A), and the latter is symmetric: an eigenvalue decomposition is exact and stable.
    root = _root(covariances[0])
    eigenvalues = np.linalg.eigvalsh(root @ covariances[1] @ root)
    mixed = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    gap = ((means[0] - means[1]) ** 2).sum()
    return float(gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * mixed)


def precision_recall(real_ND: Values, samples_MD: Values, k: int = 3) -> tuple[Interval, Interval]:
    """Improved precision and recall (Kynkäänniemi et al. 2019): shares that lie within the other set's k-NN balls.

    The interval of each is over the pictures that are counted, the other set being what it is.
    """
    real, samples = (np.asarray(x, dtype=np.float64) for x in (real_ND, samples_MD))
    between = _distances(samples, real)
    precision_M = np.any(between <= _radii(real, k)[None, :], axis=1)
    recall_N = np.any(_radii(samples, k)[None, :] >= between.T, axis=1)
    return bootstrap(precision_M.astype(np.float64)), bootstrap(recall_N.astype(np.float64))


def train_probe(features_ND: Values, labels: list[str], seed: int = 0) -> tuple[Callable[[Values], list[str]], float]:
    """A linear probe: classifier of features, and its accuracy on a fifth that it was not trained on."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test, train_labels, test_labels = train_test_split(
        np.asarray(features_ND), labels, test_size=0.2, random_state=seed, stratify=labels
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    probe.fit(train, train_labels)
    return lambda features: [str(label) for label in probe.predict(features)], float(probe.score(test, test_labels))


def _moments(x: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.asarray(x, dtype=np.float64)
    return values.mean(axis=0), np.cov(values, rowvar=False)


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    eigenvalues, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return root


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.clip(squares, 0, None))


def _radii(x: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Distance of each row to its k-th neighbour."""
    return np.partition(_distances(x, x), k, axis=1)[:, k]
