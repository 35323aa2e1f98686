"""The scans of an evaluation that a report shows: the worst, the median and the best, wrong lesions first, each with a
view that turns with a click and needs no network."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.colors import ListedColormap

from data.files.names import result_name
from data.files.volumes import read_volume
from data.scans.checks import read_lesions, read_scan, space_of
from data.scans.cohort import Case
from report.page import Section, picture
from utils.plots import DETECTION, MAX_SLICES, PREDICTION, TARGET, plot_volume_prediction, slices_to_show

KINDS_NOTE = (
    "In the pictures what was predicted is vermilion and the true lesion outlined in green; slices through missed and "
    "false lesions come first. In the views green is lesion that was found, blue lesion that was missed, vermilion "
    "what was predicted and is none; a click moves the three planes."
)
PREDICTION_NOTE = "What was predicted is vermilion. A click into a view moves its three planes."
PERCENTILES = (0.5, 99.5)  # of the head's intensities, between which they are shown
FOUND, MISSED, FALSE = 1, 2, 3  # what a voxel of lesion is
LARGEST_VOXELS = 2e6  # of a view; scans of more are shown on a coarser grid, so that the page stays small


def show_scans(folder: Path, scans: pd.DataFrame, lesions: pd.DataFrame | None, cases: list[Case]) -> Section:
    """The worst, the median and the best of the scans, with a view each; `lesions` is None without masks.

    `scans` are rows as of `ranked`, whose predictions lie below the folder of their ``model_name`` in `folder`.
    """
    by_name = {case.name: case for case in cases}
    parts = []
    for rank, row in ranked(scans[scans.scan.isin(by_name)]).items():  # a scan may be gone since it was tested
        case, own = by_name[row.scan], None
        if lesions is not None:
            own = lesions[(lesions.scan == row.scan) & (lesions.model_name == row.model_name)]
        prediction = folder / row.model_name / "predictions" / result_name(case.scan, "prediction")
        if prediction.exists():
            parts += show_scan(case, rank, row, own, prediction)
    return Section("Scans", parts, PREDICTION_NOTE if lesions is None else KINDS_NOTE)


def ranked(scans: pd.DataFrame) -> dict[str, pd.Series]:
    """The worst, the median and the best scan by Dice among those with lesions or, without any, among all.

    Without masks those with most, with middling and with least predicted lesion. Fewer than three scans come once each.
    `scans` are rows of ``volumes.csv`` with, where there are masks, the scan's ``dice``.
    """
    if "dice" in scans:
        sick = scans[scans.true_lesions > 0]
        ordered, names = (sick if len(sick) else scans).sort_values("dice"), ("worst", "median", "best")
    else:
        names = ("most lesion", "median", "least lesion")
        ordered = scans.sort_values(["predicted_cm3", "predicted_lesions"], ascending=False)
    if ordered.empty:
        return {}
    places = dict(zip(names, (0, len(ordered) // 2, len(ordered) - 1), strict=True))
    firsts = {place: name for name, place in reversed(places.items())}  # of two names for a scan the first
    return {name: ordered.iloc[place] for place, name in sorted(firsts.items())}


def show_scan(
    case: Case, rank: str, row: pd.Series, lesions: pd.DataFrame | None, prediction_file: Path
) -> list[Markup]:
    """Slices of an item of `ranked`, and a view to move in; `lesions` are its rows of ``per_lesion_scores.csv``."""
    scan = read_scan(case)[0]
    low, high = np.percentile(scan[scan != 0], PERCENTILES)
    scan = np.clip((scan - low) / max(high - low, 1e-12), 0, 1)
    prediction = read_volume(prediction_file).array[0] > 0
    target = None if case.mask is None else read_lesions(case.mask)[0]
    scores = f"{row.predicted_lesions} predicted lesions"
    if not pd.isna(row.get("dice", np.nan)):
        scores = f"Dice {row.dice:.3f}, {row.predicted_lesions} predicted and {row.true_lesions} true lesions"
    title = f"{rank.capitalize()}: {case.name}, {scores}"
    slices = slices_to_show(prediction if target is None else prediction | target, scan)
    slices = slices if lesions is None else wrong_first(lesions, slices)
    kinds, space = lesion_kinds(prediction, target), space_of(case)
    return [
        picture(plot_volume_prediction(scan, target, prediction, [], title, slices), title),
        view(scan, kinds, np.eye(4) if space is None else space.affine, _centre(kinds, slices)),
    ]


def wrong_first(lesions: pd.DataFrame, others: list[int]) -> list[int]:
    """Up to `MAX_SLICES` slices in order: through missed lesions, through false ones, through found ones, and others.

    `lesions` are rows of ``per_lesion_scores.csv``; of each kind the largest come first.
    """
    kind = np.select([lesions.kind == "false_lesion", lesions.found.fillna(False).astype(bool)], [1, 2], 0)
    ordered = lesions.assign(rank=kind).sort_values(["rank", "voxels"], ascending=[True, False])
    return sorted(list(dict.fromkeys([*ordered["slice"].astype(int), *others]))[:MAX_SLICES])


def _centre(kinds: np.ndarray, slices: list[int]) -> tuple[int, int, int]:
    """The (D, H, W) voxel to begin at: in the middle of what is marked in the slice that has most of it."""
    z = max(slices, key=lambda z: np.count_nonzero(kinds[z]))
    marked = np.argwhere(kinds[z])
    h, w = marked[len(marked) // 2] if len(marked) else np.array(kinds[z].shape) // 2
    return z, int(h), int(w)


def lesion_kinds(prediction: np.ndarray, target: np.ndarray | None) -> np.ndarray:
    """`FOUND`, `MISSED` or `FALSE` for each voxel of lesion, uint8; 0 elsewhere. Without `target` all is `FALSE`."""
    target = np.zeros_like(prediction) if target is None else target
    return np.select([prediction & target, target, prediction], [FOUND, MISSED, FALSE], 0).astype(np.uint8)


def view(scan: np.ndarray, kinds: np.ndarray, affine: np.ndarray, centre: tuple[int, int, int]) -> Markup:
    """A frame with three planes of a scan (D, H, W) in [0, 1] through a voxel, the `centre`; a click moves them.

    `kinds` is made by `lesion_kinds`; `affine` (4, 4) leads from voxel (H, W, D) to mm in RAS.
    """
    from nilearn.plotting import view_img  # here, since it takes seconds

    head, lesions = (nib.Nifti1Image(array.transpose(1, 2, 0), affine) for array in (scan.astype(np.float32), kinds))
    d, h, w = centre
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*must not exceed.*")  # of a scan without any lesion
        shown = view_img(
            place_evenly(lesions, "nearest"),
            bg_img=place_evenly(head, "continuous"),
            cut_coords=tuple(nib.affines.apply_affine(affine, (h, w, d))),
            cmap=ListedColormap([TARGET, DETECTION, PREDICTION]),  # of FOUND, MISSED and FALSE
            threshold=0.5,
            vmin=FOUND - 0.5,
            vmax=FALSE + 0.5,
            symmetric_cmap=False,
            resampling_interpolation="nearest",
            black_bg=True,
            colorbar=False,
            opacity=0.7,
            title=None,
        )
    return Markup(shown.get_iframe(width=860, height=440))  # pixels


def place_evenly(image: nib.Nifti1Image, interpolation: str) -> nib.Nifti1Image:
    """An image along the axes of the scanner with voxels of one size, as small as `LARGEST_VOXELS` lets them be."""
    from nilearn.image import resample_img

    sizes = np.array(nib.affines.voxel_sizes(image.affine))
    volume = np.prod(sizes * image.shape)
    side = max(sizes.min(), (volume / LARGEST_VOXELS) ** (1 / 3))
    return resample_img(image, np.eye(3) * side, interpolation=interpolation, copy_header=True, force_resample=True)
