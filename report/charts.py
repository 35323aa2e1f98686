"""Charts of scores over scans, lesions and folds, as figures without pyplot."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from data.files.listing import counted
from utils.plots import PREDICTION, TARGET
from utils.scores.subgroups import recall_by_volume

COLOUR = "#0072B2"
POINTS: dict[str, Any] = {"color": COLOUR, "alpha": 0.75, "linestyle": "", "marker": "o", "markersize": 5}
LIMITS_SD = 1.96  # of a normal distribution, 95 % lie within so many standard deviations


def plot_scores(scores: pd.DataFrame) -> Figure:
    """Scores in [0, 1] with their intervals, a line each, and those of single folds as ticks.

    `scores` has the columns ``score``, ``mean``, ``low`` and ``high`` (NaN without an interval) and, where there are
    folds, ``folds``, the list of theirs.
    """
    figure, axes = _axes(6.4, 0.42 * len(scores) + 1.0)
    rows = np.arange(len(scores))[::-1]
    reach = scores[["low", "high"]].sub(scores["mean"], axis=0).abs().fillna(0).to_numpy().T
    axes.errorbar(scores["mean"], rows, xerr=reach, color=COLOUR, linestyle="", marker="o", capsize=3)
    for row, folds in zip(rows, scores.get("folds", []), strict=False):
        axes.plot(folds, [row] * len(folds), color="0.45", linestyle="", marker="|", markersize=11)
    axes.set(yticks=rows, yticklabels=scores.score, xlim=(-0.02, 1.02), ylim=(-0.6, len(scores) - 0.4))
    return figure


def plot_dice_by_volume(scans: pd.DataFrame) -> Figure:
    """The Dice over the volume of the lesions; `scans` has the columns ``dice`` and ``true_cm3``, above 0."""
    figure, axes = _axes()
    axes.plot(scans.true_cm3, scans.dice, **POINTS)
    axes.set(xscale="log", xlabel="volume of the lesions of a scan, cm³", ylabel="Dice", ylim=(-0.03, 1.03))
    _plain_numbers(axes)
    return figure


def plot_recall_by_volume(lesions: pd.DataFrame, seed: int) -> Figure:
    """The share of the lesions of each size that are found, with its interval over scans, and how many there are.

    `lesions` has the columns ``scan``, ``volume_cm3`` and ``found`` (bool), and a row a lesion.
    """
    figure, axes = _axes()
    labels = []
    for i, (name, share) in enumerate(recall_by_volume(lesions, seed).items()):
        axes.bar(i, share.mean, color=TARGET, width=0.6)
        axes.errorbar(i, share.mean, [[share.mean - share.low], [share.high - share.mean]], color="0.2", capsize=4)
        labels.append(f"{name.replace('cm3', 'cm³')}\n{counted(int(share.whole.sum()), 'lesion')}")
    axes.set(xticks=range(len(labels)), xticklabels=labels, ylabel="share of the lesions found", ylim=(0, 1.03))
    return figure


def plot_bland_altman(scans: pd.DataFrame) -> Figure:
    """Predicted minus true volume over their mean (Bland and Altman, 1986, 10.1016/S0140-6736(86)90837-8).

    `scans` has the columns ``predicted_cm3`` and ``true_cm3``.
    """
    figure, axes = _axes()
    both = scans.assign(mean=(scans.predicted_cm3 + scans.true_cm3) / 2, change=scans.predicted_cm3 - scans.true_cm3)
    axes.plot(both["mean"], both.change, **POINTS)
    bias, spread = both.change.mean(), both.change.std()
    axes.axhline(bias, color=PREDICTION, label=f"mean {bias:+.2f} cm³")
    if len(both) > 1:
        low, high = bias - LIMITS_SD * spread, bias + LIMITS_SD * spread
        axes.axhline(low, color="0.4", linestyle="--", label=f"95 % limits of agreement {low:+.2f}, {high:+.2f}")
        axes.axhline(high, color="0.4", linestyle="--")
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)  # volumes from nothing to hundreds of cm³
    axes.set_xlim(left=0)
    _plain_numbers(axes)
    axes.set(xlabel="mean of predicted and true volume of a scan, cm³", ylabel="predicted minus true, cm³")
    figure.legend(frameon=False, fontsize=9, loc="outside upper left")
    return figure


def plot_volumes(volumes: pd.Series) -> Figure:
    """How many scans have how much predicted lesion, cm³."""
    figure, axes = _axes()
    axes.hist(volumes, bins=min(20, max(5, len(volumes) // 3)), color=PREDICTION, alpha=0.75, edgecolor="white")
    axes.set(xlabel="predicted lesion of a scan, cm³", ylabel="scans")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _axes(width: float = 5.6, height: float = 3.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain_numbers(axes: Axes) -> None:
    """Write 1, 2, 5, 10 along a logarithmic axis, which else has powers, and few of them."""
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.get_major_locator().set_params(subs=(1, 2, 5))  # type: ignore[call-arg]  # of a logarithmic one
