"""The page of pictures that shows a cohort at a glance: how large its lesions are, where they lie, and its scans."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from utils.plots import DPI, HEAT, TARGET, outline, show_slice
from utils.scores.metrics import SIZE_BINS

Tile = tuple[str, np.ndarray, np.ndarray]  # caption, slice (H, W) in [0, 1] and mask (H, W) of a scan
MAP_SLICES = 8
COLUMNS = 8  # of the contact sheet
BAR: dict[str, Any] = {"color": TARGET, "edgecolor": "white"}


def plot_cohort(
    table: pd.DataFrame,
    template: np.ndarray,
    frequency: np.ndarray,
    tiles: Sequence[Tile],
    registered: bool,
) -> Figure:
    """Draw lesion sizes, a map of lesion frequency and a contact sheet of `tiles`.

    Args:
        table: rows of ``cohort.csv``.
        template: (D, H, W) in [0, 1], the head that the map is laid on.
        frequency: (D, H, W) in [0, 1], share of the scans with a lesion there.
        registered: whether the scans are in the template's space; the title of the map says where they are not.
    """
    rows = -(-len(tiles) // COLUMNS)
    heights = [3, 2.6, 1.9 * rows]
    figure = Figure(figsize=(14, sum(heights) + 0.4), dpi=DPI, layout="constrained")
    sick = int((table.lesion_voxels > 0).sum())
    figure.suptitle(f"{len(table)} scans of {table.subject.nunique()} subjects, {sick} of them with lesion")
    sizes, places, sheet = figure.subfigures(3, 1, height_ratios=heights)  # type: ignore[misc]  # an array of three
    _draw_sizes(sizes, table)
    _draw_frequency(places, template, frequency, registered)
    _draw_tiles(sheet, tiles, rows)
    return figure


def _draw_sizes(figure: SubFigure, table: pd.DataFrame) -> None:
    volumes, bins, sides = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    sick = table.lesion_cm3[table.lesion_cm3 > 0]
    volumes.set(title="lesion volume of a scan", xlabel="cm³", ylabel="scans", xscale="log")
    if len(sick):
        low, high = np.floor(np.log10(sick.min())), np.ceil(np.log10(sick.max() * 1.001))
        volumes.hist(sick, np.logspace(low, high, int(4 * max(high - low, 1)) + 1).tolist(), **BAR)
        volumes.axvline(sick.median(), color="0.2", linestyle="--", label=f"median {sick.median():.3g} cm³")
        volumes.legend(frameon=False)
    volumes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _draw_counts(bins, table["size"], list(SIZE_BINS), "lesion as a share of the brain")
    _draw_counts(sides, table.laterality, ["left", "both", "right"], "side of the lesion")


def _draw_counts(axes: Axes, values: pd.Series, names: list[str], title: str) -> None:
    axes.bar(names, [int((values == name).sum()) for name in names], **BAR)
    axes.set(title=title, ylabel="scans")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_frequency(figure: SubFigure, template: np.ndarray, frequency: np.ndarray, registered: bool) -> None:
    where = "on the MNI152 template" if registered else "on the MNI152 template (heads centred, not registered)"
    figure.suptitle(f"share of scans with a lesion, {where}", fontsize=10)
    with_brain = np.flatnonzero((template > 0.1).any((1, 2)))  # resampling leaves traces beyond the head
    shown = np.linspace(with_brain[0], with_brain[-1], MAP_SLICES + 2).astype(int)[1:-1]
    scale = Normalize(0, max(float(frequency.max()), 1e-6))
    panels = figure.subplots(1, MAP_SLICES)
    for axes, z in zip(panels, shown, strict=True):
        show_slice(axes, template[z])
        heat = np.ma.masked_equal(frequency[z].T, 0)
        axes.imshow(heat, cmap=HEAT, norm=scale, alpha=0.8, origin="lower")
    figure.colorbar(ScalarMappable(scale, HEAT), ax=panels, shrink=0.8, format=lambda share, _: f"{share:.0%}")


def _draw_tiles(figure: SubFigure, tiles: Sequence[Tile], rows: int) -> None:
    figure.suptitle("scans from the smallest lesion to the largest, each by its slice with most lesion", fontsize=10)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels[len(tiles) :]:
        axes.set_axis_off()
    for axes, (caption, image, mask) in zip(panels, tiles, strict=False):
        show_slice(axes, image, caption)
        outline(axes, mask)
