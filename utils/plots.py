"""Pictures of scans, proposals and trainings, without pyplot, so that no global state grows over a cohort.

Axial slices stand upright: H along the picture's x axis, the head's left on the left, and W along y, its front above.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from utils.files import atomic_path
from utils.regions.region import Region

if TYPE_CHECKING:  # the runner does without it
    import pandas as pd

# Colours that are told apart with any colour vision (Okabe and Ito, 2008, jfly.uni-koeln.de/color).
TARGET, PREDICTION, DETECTION, REGION = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
HEAT = "inferno"

DPI = 110
SLICE_SIZE = 2.6  # inches of a slice among several; one slice alone is twice as large
TITLE_LETTERS_PER_INCH = 12
MAX_SLICES = 5
LEGEND, HEAT_BAR = 0.9, 0.8  # inches beside the slices
CURVES: dict[str, dict[str, Any]] = {
    "train": {"label": "training", "color": "#0072B2", "linestyle": "-"},
    "val": {"label": "validation", "color": "#D55E00", "linestyle": "--"},
}


def save_figure(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, whole or not at all, and release the memory of its images."""
    lay_out(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    figure.clear()


def lay_out(figure: Figure) -> None:
    """Place the axes of a figure once: ``savefig`` would do it twice, in half of its time."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine("none")


def pictures_per_scan(n_pictures: int, n_scans: int, seed: int) -> np.ndarray:
    """(n_scans,) int: pictures drawn of each scan, spread evenly and otherwise at random; they sum to `n_pictures`."""
    shares = (np.arange(n_scans) + 1) * n_pictures // n_scans - np.arange(n_scans) * n_pictures // n_scans
    return np.random.default_rng(seed).permutation(shares)


def plot_slice_boxes(
    image: np.ndarray,
    mask: np.ndarray | None,
    boxes: np.ndarray,
    scores: np.ndarray,
    region_boxes: np.ndarray | None,
    title: str,
) -> Figure:
    """Draw the detections of one slice over its lesion and the regions proposed there.

    Args:
        image: (H, W) in [0, 1].
        mask: (H, W) bool, the true lesion, or None if unknown.
        boxes, region_boxes: (N, 4) xyxy in voxels, half-open, x along W and y along H.
        scores: (N,) in [0, 1]; a surer box is drawn more strongly.
    """
    figure = new_figure(2 * SLICE_SIZE, 2 * SLICE_SIZE + LEGEND, title)
    axes = figure.subplots()
    regions = np.zeros((0, 4)) if region_boxes is None else region_boxes
    show_slice(axes, image)
    outline(axes, mask)
    for box in regions:
        _draw_box(axes, box, color=REGION, linewidth=2)
    plate = {"facecolor": "black", "alpha": 0.7, "linewidth": 0, "pad": 0.8}  # for white matter is bright
    style: dict[str, Any] = {"color": DETECTION, "fontsize": 8, "bbox": plate, "textcoords": "offset points"}
    for i in np.argsort(scores):  # the surest last, on top of the others
        _draw_box(axes, boxes[i], color=DETECTION, linestyle="--", linewidth=1.6, alpha=0.4 + 0.6 * float(scores[i]))
        axes.annotate(f"{scores[i]:.2f}", (boxes[i][1] - 0.5, boxes[i][2] - 0.5), (1, 3), **style)
    _add_legend(figure, target=mask is not None, detection=len(boxes) > 0, region=len(regions) > 0)
    return figure


def plot_volume_prediction(
    scan: np.ndarray,
    target: np.ndarray | None,
    prediction: np.ndarray,
    regions: Sequence[Region],
    title: str,
    shown: Sequence[int] | None = None,
) -> Figure:
    """Draw axial slices of a volume: the scan alone and, below, with lesion, prediction and proposed regions.

    All are (D, H, W), the scan in [0, 1], masks bool; `shown` are slices, None for those that `slices_to_show` chooses.
    """
    shown = shown or slices_to_show(prediction if target is None else prediction | target, scan)
    figure = new_figure(SLICE_SIZE * max(len(shown), 3), 2 * SLICE_SIZE + LEGEND, title)
    plain, marked = figure.subplots(2, len(shown), squeeze=False)
    for z, above, below in zip(shown, plain, marked, strict=True):
        show_slice(above, scan[z], f"slice {z}")
        show_slice(below, scan[z])
        lesion = np.ma.masked_equal(prediction[z].T, 0)
        below.imshow(lesion, cmap=ListedColormap([PREDICTION]), alpha=0.4, origin="lower")
        outline(below, prediction[z], PREDICTION)
        outline(below, None if target is None else target[z])
        for region in regions:
            if region.region_start <= z < region.region_end:
                _draw_box(below, (region.xmin, region.ymin, region.xmax, region.ymax), color=REGION, linewidth=1.4)
    _add_legend(figure, target=target is not None, prediction=True, region=len(regions) > 0)
    return figure


def slices_to_show(marked: np.ndarray, scan: np.ndarray) -> list[int]:
    """Up to `MAX_SLICES` axial slices in order, spread over those that are marked and with the largest cross-section.

    Where `marked` (D, H, W) is empty, they are spread over the head: where the scan (D, H, W) is not 0.
    """
    areas = np.count_nonzero(marked, axis=(1, 2))
    areas = areas if areas.any() else np.count_nonzero(scan, axis=(1, 2))
    candidates = np.flatnonzero(areas) if areas.any() else np.arange(len(areas))
    n = min(MAX_SLICES, len(candidates))
    # The middles of n equal parts: the outermost slices hold the mere tips of a lesion.
    shown = candidates[((np.arange(n) + 0.5) * len(candidates) / n).astype(int)]
    largest = np.argmax(areas)
    shown[np.argmin(np.abs(shown - largest))] = largest
    return sorted(shown.tolist())


def plot_gradcam(
    scan: np.ndarray, heat: np.ndarray, target: np.ndarray | None, prediction: np.ndarray, title: str
) -> Figure:
    """Draw Grad-CAM over the slice with most heat and over the slice with most lesion; the middle one without either.

    All are (D, H, W), scan and heat in [0, 1], masks bool; of an unknown target, None, the prediction is the lesion.
    """
    shown: dict[int, str] = {}  # the slices, with what distinguishes each
    for volume, why in ((heat, "most heat"), (prediction if target is None else target, "largest lesion")):
        total = volume.sum(axis=(1, 2))
        if total.any():
            z = int(np.argmax(total))
            shown[z] = f"{shown[z]}, {why}" if z in shown else why
    shown = shown or {len(heat) // 2: "no heat, no lesion"}
    figure = new_figure(2 * SLICE_SIZE * len(shown) + HEAT_BAR, 2 * SLICE_SIZE + LEGEND, title)
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (z, why) in zip(panels, shown.items(), strict=True):
        show_slice(axes, scan[z], f"slice {z}: {why}")
        # The clearer the less, so that the anatomy shows where there is none.
        axes.imshow(heat[z].T, cmap=HEAT, vmin=0, vmax=1, alpha=0.75 * np.clip(heat[z].T, 0, 1), origin="lower")
        outline(axes, None if target is None else target[z])
        outline(axes, prediction[z], DETECTION)
    bar = figure.colorbar(ScalarMappable(cmap=HEAT), ax=panels, shrink=0.8)
    bar.set_label("Grad-CAM: evidence for a lesion (0 none, 1 most)")
    _add_legend(figure, target=target is not None, prediction_outline=True)
    return figure


def plot_coverage(curve: "pd.DataFrame", threshold: float, target: float) -> Figure:
    """Draw what stage 1 covers against what it proposes (a `coverage_curve`), the target and the chosen threshold."""
    figure = new_figure(5.2, 4.2, "Calibration on the validation scans")
    axes = figure.subplots()
    ordered = curve.sort_values("proposed_fraction")
    fraction = ordered.proposed_fraction
    axes.plot(fraction, ordered.lesion_coverage, marker=".", color=TARGET, label="lesion voxels covered")
    axes.plot(fraction, ordered.lesion_recall, marker=".", color=PREDICTION, label="lesions covered")
    chosen = curve.proposed_fraction.iloc[(curve.threshold - threshold).abs().argmin()]
    axes.axvline(chosen, color="0.3", linestyle="--", label=f"threshold {threshold:.5g}")
    axes.axhline(target, color="0.7", linestyle=":", label=f"target {target:g}")
    axes.set(xlabel="proposed fraction of the brain", ylabel="share covered", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return figure


def plot_loss_curves(metrics: "pd.DataFrame") -> Figure:
    """Draw each training and validation loss and the learning rate by epoch, of Lightning's ``metrics.csv``.

    Its columns are ``epoch``, ``step``, ``train_*loss*``, ``val_*loss*`` and ``lr-*``; a row holds some of them.
    """
    ordered = metrics.sort_values("step", kind="stable")
    # The rate's rows carry no epoch: they are written before the losses of their epoch.
    by_epoch = ordered.groupby(ordered.epoch.bfill().ffill()).mean()
    names = by_epoch.columns.astype(str)
    losses = [name.removeprefix("train_") for name in names if name.startswith("train_") and "loss" in name]
    losses.sort(key=lambda name: (name != "loss", name))  # the total, which training minimises, comes first
    rates = [name for name in names if name.startswith("lr-")]
    n = len(losses) + (len(rates) > 0)
    columns, rows = max(min(n, 3), 1), max(-(-n // 3), 1)
    figure = new_figure(4.2 * columns, 3.2 * rows, "Training")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(n)]
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes, name in zip(panels, losses, strict=False):
        for stage, style in CURVES.items():
            if f"{stage}_{name}" in by_epoch:
                axes.plot(by_epoch[f"{stage}_{name}"].dropna(), marker=".", **style)
        axes.set_title(name.replace("_", " "))
        axes.legend(frameon=False)
    for rate in rates:
        panels[-1].plot(by_epoch[rate].dropna(), color="0.3", marker=".")
        panels[-1].set(title="learning rate", yscale="log")
    return figure


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches whose title, however long a file's name, stays inside."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle(fill(title, int(width * TITLE_LETTERS_PER_INCH)), fontsize=10)
    return figure


def show_slice(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Show a slice (H, W) upright, with the sides of the head marked."""
    axes.imshow(image.T, cmap="gray", vmin=0, vmax=1, origin="lower")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    for x, side, align in ((0.02, "L", "left"), (0.98, "R", "right")):
        axes.text(x, 0.5, side, transform=axes.transAxes, color="white", fontsize=9, ha=align, va="center")


def outline(axes: Axes, mask: np.ndarray | None, color: str = TARGET) -> None:
    if mask is not None and mask.any():
        axes.contour(mask.T, levels=[0.5], colors=[color], linewidths=1.4)


def _draw_box(axes: Axes, box: Sequence[float] | np.ndarray, **style: Any) -> None:
    """Draw a box (xmin, ymin, xmax, ymax), x along W and y along H, around the voxels that it holds."""
    xmin, ymin, xmax, ymax = (float(v) for v in box)
    # Voxel i is drawn from i - 0.5 to i + 0.5.
    axes.add_patch(Rectangle((ymin - 0.5, xmin - 0.5), ymax - ymin, xmax - xmin, fill=False, **style))


def _add_legend(figure: Figure, **shown: bool) -> None:
    """A legend below the picture for the parts that are shown."""
    parts = {
        "target": Line2D([], [], color=TARGET, label="True lesion"),
        "prediction": Patch(color=PREDICTION, alpha=0.6, label="Predicted lesion"),
        "prediction_outline": Line2D([], [], color=DETECTION, label="Predicted lesion"),
        "detection": Line2D([], [], color=DETECTION, linestyle="--", label="Detection, with its score"),
        "region": Line2D([], [], color=REGION, label="Proposed region"),
    }
    handles = [parts[name] for name, present in shown.items() if present]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
