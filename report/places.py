"""The map of where in MNI space the lesions of a cohort lie, predicted beside true."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from data.files.space import resample
from data.files.volumes import read_volume
from data.scans.mni import map_space, template_t1
from report.page import Section, picture
from utils.files import PLACES_FILE, frequency_file, read_json
from utils.plots import HEAT, HEAT_BAR, SLICE_SIZE, new_figure, show_slice

SLICES_MM = (-40, -20, 0, 20, 40, 60)  # axial, of MNI


def lesion_map(scores_dir: Path, names: Sequence[str]) -> Section:
    """How many of the models' test scans have a lesion where; a section without parts where no place is known."""
    folders = [scores_dir / name for name in names]
    files = [folder / PLACES_FILE for folder in folders if (folder / PLACES_FILE).exists()]
    places = [place for file in files for place in read_json(file).values()]
    n = sum(place is not None for place in places)
    shares = {whose: _sum_of([folder / frequency_file(whose) for folder in folders]) for whose in ("predicted", "true")}
    known = {whose: total / n for whose, total in shares.items() if total is not None and n}
    note = (
        f"The share of {n} scans with a lesion at each place of the MNI152 template, by an affine registration; the "
        "left side of the head is on the left."
    )
    if n < len(places):
        note += f" {len(places) - n} further scans have no place there."
    title = "Where lesions lie"
    return Section(title, [picture(plot_lesion_map(known), title)] if known else [], note)


def _sum_of(files: Sequence[Path]) -> np.ndarray | None:
    maps = [read_volume(file).array[0] for file in files if file.exists()]
    return np.sum(maps, 0) if maps else None


def plot_lesion_map(shares: dict[str, np.ndarray]) -> Figure:
    """Draw shares of scans, (D, H, W) in [0, 1] on `map_space` by their name, on slices of the template, a row each."""
    space, (t1, own) = map_space(), template_t1()
    template = resample(t1[None], own, space, outside=(0.0,))[0]
    slices = [round((z - space.affine[2, 3]) / space.spacing_mm[0]) for z in SLICES_MM]
    most = max(max(float(share.max()) for share in shares.values()), 1e-6)
    figure = new_figure(SLICE_SIZE * 0.75 * len(slices) + HEAT_BAR, SLICE_SIZE * len(shares) + 0.4, "")
    rows = figure.subplots(len(shares), len(slices), squeeze=False)
    for row, (whose, share) in zip(rows, shares.items(), strict=True):
        for axes, z, mm in zip(row, slices, SLICES_MM, strict=True):
            show_slice(axes, template[z], f"{whose}, z = {mm} mm")
            shown = np.ma.masked_less_equal(share[z].T, 0)
            axes.imshow(shown, cmap=HEAT, vmin=0, vmax=most, alpha=0.8, origin="lower")
    colours = ScalarMappable(Normalize(0, most), HEAT)
    figure.colorbar(colours, ax=rows, shrink=0.8).set_label("share of scans with a lesion")
    return figure
