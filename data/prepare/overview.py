"""Overview of a cohort: a page of pictures of its lesions and scans."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from data.files.names import bids_entity
from data.files.space import Space, resample
from data.files.volumes import read_volume
from data.prepare.cohort import read_record, record_path
from data.scans.head import normalise
from data.scans.mni import map_space, template_t1
from utils.plots import DPI, HEAT, TARGET, outline, save_figure, show_slice
from utils.progress import progress

TILES = 32  # scans on the contact sheet
MAP_SLICES = 8
COLUMNS = 8  # of the contact sheet
Tile = tuple[str, np.ndarray, np.ndarray]  # caption, slice (H, W) in [0, 1] and mask (H, W) of a scan


def are_in_mni(scans: Iterable[str]) -> bool:
    """Whether all scans say by their names (``space-MNI152...``) that places can be compared between them."""
    return all((bids_entity(scan, "space") or "").startswith("MNI152") for scan in scans)


def draw_overview(table: pd.DataFrame, out_dir: Path) -> None:
    """Write ``cohort.png``: lesion sizes, where lesions lie on the MNI152 template, and a contact sheet of scans."""
    in_mni = are_in_mni(table.scan)
    template, frequency = _lesion_frequency(table, out_dir, in_mni)
    tiles = _tiles(table, out_dir)
    rows = -(-len(tiles) // COLUMNS)
    heights = [3, 2.6, 1.9 * rows]
    figure = Figure(figsize=(14, sum(heights) + 0.4), dpi=DPI, layout="constrained")
    sick = int((table.lesion_voxels > 0).sum())
    figure.suptitle(f"{len(table)} scans of {table.subject.nunique()} subjects, {sick} of them with lesion")
    sizes, places, sheet = figure.subfigures(3, 1, height_ratios=heights)  # type: ignore[misc]  # an array of three
    _draw_sizes(sizes, table)
    _draw_frequency(places, template, frequency, in_mni)
    _draw_tiles(sheet, tiles, rows)
    save_figure(figure, out_dir / "cohort.png")


def _lesion_frequency(table: pd.DataFrame, out_dir: Path, in_mni: bool) -> tuple[np.ndarray, np.ndarray]:
    """The MNI152 template, (D, H, W) in [0, 1], and on it the share of the scans with a lesion at each voxel.

    Without `in_mni` scans are laid on the template by the middle of their grid, where their brain is.
    """
    (t1, own), target = template_t1(), map_space()
    count = np.zeros(target.shape)
    for scan, mask in progress(zip(table.scan, table["mask"], strict=True), "Mapping lesions", len(table)):
        space = read_record(record_path(scan, out_dir))["space"]
        lesion = read_volume(out_dir / "Masks" / mask).array > 0
        count += resample(lesion, space if in_mni else _about(space, target), target)[0]
    return resample(t1[None], own, target, outside=(0.0,))[0], count / len(table)


def _about(own: Space, other: Space) -> Space:
    """The grid moved so that its middle lies on the middle of another's."""
    own_middle, middle = (s.affine @ [*(np.roll(s.shape, -1) - 1) / 2, 1] for s in (own, other))
    moved = own.affine.copy()
    moved[:3, 3] += (middle - own_middle)[:3]
    return Space(own.shape, moved)


def _tiles(table: pd.DataFrame, out_dir: Path) -> list[Tile]:
    """Up to `TILES` scans, from the smallest lesion to the largest, each by the slice with most lesion."""
    ordered = table.sort_values("lesion_cm3", kind="stable")
    chosen = ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, min(TILES, len(ordered))).astype(int))]
    tiles = []
    for row in chosen.itertuples():
        scan = read_volume(out_dir / "Scans" / str(row.scan)).array
        mask = read_volume(out_dir / "Masks" / str(row.mask)).array[0] > 0
        z = int(mask.sum((1, 2)).argmax()) if mask.any() else len(mask) // 2
        image = normalise(scan[:, z : z + 1], np.ones((1, *scan.shape[2:]), bool))[0, 0]
        # The mask's slice is copied, or the page would keep every volume in memory.
        tiles.append((f"{row.subject}  {row.lesion_cm3:.3g} cm³", image, mask[z].copy()))
    return tiles


def _draw_sizes(figure: SubFigure, table: pd.DataFrame) -> None:
    volumes = figure.subplots()
    sick = table.lesion_cm3[table.lesion_cm3 > 0]
    volumes.set(title="lesion volume of a scan", xlabel="cm³", ylabel="scans", xscale="log")
    if len(sick):
        low, high = np.floor(np.log10(sick.min())), np.ceil(np.log10(sick.max() * 1.001))
        bins = np.logspace(low, high, int(4 * max(high - low, 1)) + 1).tolist()
        volumes.hist(sick, bins, color=TARGET, edgecolor="white")
        volumes.axvline(sick.median(), color="0.2", linestyle="--", label=f"median {sick.median():.3g} cm³")
        volumes.legend(frameon=False)
    volumes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_frequency(figure: SubFigure, template: np.ndarray, frequency: np.ndarray, in_mni: bool) -> None:
    where = "on the MNI152 template" if in_mni else "on the MNI152 template (heads centred, not registered)"
    figure.suptitle(f"share of scans with a lesion, {where}", fontsize=10)
    with_brain = np.flatnonzero((template > 0.1).any((1, 2)))
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
