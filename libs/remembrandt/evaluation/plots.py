"""Plots of protocols, as PNG."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

Figures = Mapping[str, Mapping[str, float]]


def plot_bars(figures: Figures, label: str) -> bytes:
    """`<group>/<bar>/entity` → bars with 95 % intervals, side by side in their groups."""
    found = {tuple(key.split("/")[:2]): value for key, value in figures.items() if key.endswith("/entity")}
    groups, bars = (list(dict.fromkeys(name[part] for name in found)) for part in (0, 1))
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    width = 0.8 / len(bars)
    for number, bar in enumerate(bars):
        places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
        values = [found[group, bar] for group in groups]
        means = [value["mean"] for value in values]
        errors = [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]
        axes.bar(places, means, width * 0.92, yerr=errors, capsize=3, label=bar)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(label)
    axes.legend(frameon=False)
    return _png(figure)


def plot_curve(figures: Figures) -> bytes:
    """`<η>/entity` and `<η>/text` → the curve from one to the other, a point for each η."""
    ratios = list(dict.fromkeys(key.split("/")[0] for key in figures))
    x, y = ([figures[f"{ratio}/{kind}"] for ratio in ratios] for kind in ("text", "entity"))
    figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    axes.errorbar(
        [v["mean"] for v in x], [v["mean"] for v in y],
        xerr=[[v["mean"] - v["low"] for v in x], [v["high"] - v["mean"] for v in x]],
        yerr=[[v["mean"] - v["low"] for v in y], [v["high"] - v["mean"] for v in y]],
        marker="o", capsize=3, elinewidth=0.8,
    )  # fmt: skip
    for ratio, a, b in zip(ratios, x, y, strict=True):
        axes.annotate(f"η = {ratio}", (a["mean"], b["mean"]), xytext=(5, 5), textcoords="offset points")
    axes.set_xlabel("similarity to the text")
    axes.set_ylabel("similarity to the entity's own drawings")
    return _png(figure)


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    plt.close(figure)
    return data.getvalue()
