"""Pictures of a training: its losses, and what calibration had to choose from."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.plots import PREDICTION, TARGET, new_figure

CURVES: dict[str, dict[str, Any]] = {
    "train": {"label": "training", "color": "#0072B2", "linestyle": "-"},
    "val": {"label": "validation", "color": "#D55E00", "linestyle": "--"},
}


def plot_coverage(curve: pd.DataFrame, threshold: float, target: float) -> Figure:
    """Draw what stage 1 covers, and the `target` share, against what it proposes, with the chosen `threshold`.

    Args:
        curve: columns ``threshold``, ``lesion_coverage``, ``lesion_recall`` and ``proposed_fraction``.
    """
    figure = new_figure(5.2, 4.2, "Calibration on the validation scans")
    axes = figure.subplots()
    ordered = curve.sort_values("proposed_fraction")
    for column, color, label in (
        ("lesion_coverage", TARGET, "lesion voxels covered"),
        ("lesion_recall", PREDICTION, "lesions covered"),
    ):
        axes.plot(ordered.proposed_fraction, ordered[column], marker=".", color=color, label=label)
    chosen = curve.proposed_fraction.iloc[(curve.threshold - threshold).abs().argmin()]
    axes.axvline(chosen, color="0.3", linestyle="--", label=f"threshold {threshold:.5g}")
    axes.axhline(target, color="0.7", linestyle=":", label=f"target {target:g}")
    axes.set(xlabel="proposed fraction of the brain", ylabel="share covered", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def plot_loss_curves(metrics: pd.DataFrame) -> Figure:
    """Draw each training and validation loss and the learning rate by epoch.

    Args:
        metrics: Lightning's ``metrics.csv``: columns ``epoch``, ``step``, ``train_*loss*``, ``val_*loss*`` and
            ``lr-*``, where a row holds some of them and NaN for the others.
    """
    by_epoch = _mean_by_epoch(metrics)
    columns = by_epoch.columns.astype(str)
    losses = [c.removeprefix("train_") for c in columns if c.startswith("train_") and "loss" in c]
    losses.sort(key=lambda name: (name != "loss", name))  # the total, which training minimises, comes first
    rates = [c for c in columns if c.startswith("lr-")]
    figure, panels = _panels(len(losses) + (len(rates) > 0))
    for axes, name in zip(panels, losses, strict=False):
        _draw_loss(axes, by_epoch, name)
    for rate in rates:
        panels[-1].plot(by_epoch[rate].dropna(), color="0.3", marker=".")
        panels[-1].set(title="learning rate", yscale="log")
    return figure


def _mean_by_epoch(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row an epoch. The rate's rows carry no epoch: they are written before the losses of their epoch."""
    ordered = metrics.sort_values("step", kind="stable")
    return ordered.groupby(ordered.epoch.bfill().ffill()).mean()


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    columns = min(n, 3)
    rows = -(-n // max(columns, 1))
    figure = new_figure(4.2 * max(columns, 1), 3.2 * max(rows, 1), "Training")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(n)]
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, panels


def _draw_loss(axes: Axes, by_epoch: pd.DataFrame, name: str) -> None:
    for stage, style in CURVES.items():
        if f"{stage}_{name}" in by_epoch:
            axes.plot(by_epoch[f"{stage}_{name}"].dropna(), marker=".", **style)
    axes.set_title(name.replace("_", " "))
    axes.legend(frameon=False)
