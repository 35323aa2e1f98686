"""A page of augmented slices: the recipient, the donor, the result and what changed."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from augmentation.cohort import IndexedCohort, Scan
from data.files.volumes import read_volume
from utils.files import read_json
from utils.plots import DPI, outline, save_figure, show_slice

ROWS = 8
TITLES = ("recipient", "donor", "result", "difference")


def draw_contact_sheet(cohort: IndexedCohort, out_dir: Path) -> None:
    """Write ``contact_sheet.png``: of up to `ROWS` augmented scans their largest new lesion."""
    provenance = read_json(out_dir / "provenance.json")
    if not provenance:
        return
    shown = list(provenance)[:: -(-len(provenance) // ROWS)]
    volumes = {case.name: number for number, case in enumerate(cohort.cases)}
    figure = Figure(figsize=(11, 2.8 * len(shown)), dpi=DPI, layout="constrained")
    for axes, name in zip(figure.subplots(len(shown), len(TITLES), squeeze=False), shown, strict=True):
        origin = provenance[name]
        lesion = max(origin["lesions"], key=lambda lesion: lesion["voxels"])
        recipient, donor = (cohort.load(volumes[scan]) for scan in (origin["recipient_scan"], lesion["scan"]))
        result = read_volume(out_dir / "Scans" / name).array[0]
        new = read_volume(out_dir / "Masks" / origin["mask"]).array[0] > recipient.lesions
        _draw_row(axes, name, recipient, donor, result, new, lesion)
    save_figure(figure, out_dir / "contact_sheet.png")


def _draw_row(axes: list[Axes], name: str, recipient: Scan, donor: Scan, result, new: np.ndarray, lesion: dict) -> None:
    z, donor_z = lesion["slice"], lesion["donor_slice"]
    before, after, lent = recipient.image[0, z], result[z], donor.image[0, donor_z]
    captions = (f"{TITLES[0]}, slice {z}", f"{TITLES[1]}, slice {donor_z}", TITLES[2], TITLES[3])
    change, span = after - before, recipient.contrast[0]
    images = (_scaled(before, recipient), _scaled(lent, donor), _scaled(after, recipient), 0.5 + change / span)
    for panel, image, caption in zip(axes, images, captions, strict=True):
        show_slice(panel, image, caption)
    axes[0].set_ylabel(name, fontsize=6)
    outline(axes[1], donor.lesions[donor_z])
    outline(axes[2], new[z])


def _scaled(image: np.ndarray, scan: Scan) -> np.ndarray:
    return (image - scan.low[0]) / max(scan.contrast[0], 1e-12)
