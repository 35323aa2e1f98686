"""StrokeFormer from Python: networks, masks and scores without a command line. docs/python.md shows the use.

Scans and masks are files (``.npy``, ``.nii``, ``.nii.gz``), nibabel images, or arrays (H, W, D) whose (4, 4) `affine`
from voxels to mm is given too. Results are nibabel images on the scan's own grid. What ``test_strokeformer.py`` refuses
raises a `UserError`, which names a file by its path and all else by its keyword; ``--scan_dim`` in it is one too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from data.files.images import Image, Volume, files_of
from data.files.listing import choose_files
from data.files.names import extension_of
from data.files.space import Space, resample
from data.files.volumes import image_like, read_header, read_volume, refusing, volume_image
from data.scans.brain import brain_origin, print_heads, read_brain, with_brains
from data.scans.checks import check_alignment, check_headers, print_numbered, read_binary, read_lesions
from data.scans.cohort import Case, pair_files
from data.scans.contrast import require_contrast
from data.scans.grid import own_space
from data.scans.open import cohort_of
from data.scans.prepared import PreparedScan
from data.settings import GridSettings, Loading
from models.checkpoints import grid_at_test, load_model, load_rpn, load_strokeformer, require_channels, require_spacing
from models.ensembles import RPNEnsemble, StrokeFormerEnsemble
from models.export.exported import shipped_model
from models.pipeline import BATCH_SIZE, Prediction, TwoStage
from models.regions import rpn_source
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SlidingWindow
from utils.errors import UserError
from utils.files import expanded
from utils.regions.region import region_mask
from utils.scores.metrics import lesion_rows, scan_scores
from utils.settings import checked, filled

__all__ = [
    "UserError",
    "find_brain",
    "lesion_probability",
    "lesions",
    "load_rpn",
    "load_strokeformer",
    "pretrained",
    "propose",
    "read_image",
    "scores",
    "segment",
]

Proposer = RPN | RPNEnsemble
Segmenter = StrokeFormer | StrokeFormerEnsemble


def pretrained(contrast: str) -> tuple[RPN, StrokeFormer]:
    """Both networks of the model that comes with this program for ``"t1w"``, ``"dwi"`` or ``"flair"`` scans.

    They have never seen a patient: docs/pretrained.md. `rpn, model = pretrained("dwi")` are arguments of `segment`.

    Raises:
        UserError: there is no model of this contrast.
    """
    folder = shipped_model(contrast)
    return load_model(RPN, folder), load_model(StrokeFormer, folder)


def segment(
    scan: Volume,
    rpn: Proposer | None,
    model: Segmenter,
    brain: Volume | None = None,
    scan_dim: Sequence[int] | None = None,
    contrast: str | None = None,
    affine: ArrayLike | None = None,
    **windows,
) -> Image:
    """The lesions of a scan, the mask that ``test_strokeformer.py`` writes.

    Args:
        scan: of any voxel size and orientation, with skull or without.
        rpn: proposes where to look; None for the whole volume.
        brain: mask of its brain; None for that in ``Brains/`` beside the folder of the scan or, where there is none, to
            find it.
        scan_dim: (C, D, H, W) of the grid, where the head does not fit into that of the network.
        contrast: of the scan, one of `data.files.names.CONTRASTS`, where its name says nothing or something else.
        affine: of the arrays among scan and brain.
        windows: ``overlap``, ``subvolume_depth``, ``batch_size``, ``flip_average`` as of ``test_strokeformer.py``.

    Returns:
        uint8, the class of each voxel; 0 is background.

    Raises:
        UserError: a scan that cannot be read or has no head, a brain larger than the grid, networks of two voxel sizes,
            a contrast that the networks have not learned.
    """
    with _opened(scan, rpn, model, brain, scan_dim, contrast, affine) as (case, prepared):
        return _image(_predict(prepared, rpn, model, **windows).classes, case)


def lesion_probability(
    scan: Volume,
    rpn: Proposer | None,
    model: Segmenter,
    brain: Volume | None = None,
    scan_dim: Sequence[int] | None = None,
    contrast: str | None = None,
    affine: ArrayLike | None = None,
    **windows,
) -> Image:
    """Probability of lesion, float32 in [0, 1], from which `segment` decides, with its arguments; 0 outside regions."""
    with _opened(scan, rpn, model, brain, scan_dim, contrast, affine) as (case, prepared):
        return _image(_predict(prepared, rpn, model, **windows).lesion_probability, case)


def propose(
    scan: Volume,
    rpn: Proposer,
    model: Segmenter,
    brain: Volume | None = None,
    scan_dim: Sequence[int] | None = None,
    contrast: str | None = None,
    affine: ArrayLike | None = None,
) -> Image:
    """The regions in which stage 2 looks for lesions, as one mask, uint8 of 0 and 1.

    They are as large as the windows of `model` ask for. Arguments and errors are those of `segment`.
    """
    with _opened(scan, rpn, model, brain, scan_dim, contrast, affine) as (case, prepared):
        inside = region_mask(rpn_source(rpn, model.hparams["roi_size"])(prepared), prepared.space.shape)
        return _image(resample(inside[None], prepared.space, prepared.own)[0].astype(np.uint8), case)


def find_brain(scan: Volume, affine: ArrayLike | None = None) -> Image:
    """The brain mask of a scan, uint8 of 0 and 1, for the `brain` of the other functions.

    Where no brain is found the whole head is used as the brain mask, and a line is printed.

    Raises:
        UserError: a scan that cannot be read or has no head, or a brain of more than 2.2 litres.
    """
    with files_of(affine, scan=scan) as (folder, files):
        case = _case_of(files)
        check_headers([case], read_header(case.scan).shape, None)
        brain = read_brain(case, folder)
        if brain_origin(case, folder) == "head":
            print_heads([case])
        return _image(brain.astype(np.uint8), case)


def read_image(path: str | Path, scan: str | Path | None = None) -> Image:
    """The image of a file; that of a mask in ``.npy`` lies where its `scan` lies."""
    if not isinstance(path, str | Path) or not isinstance(scan, str | Path | None):
        raise UserError("path and scan are paths of files; give an image or array to the other functions as it is")
    path = expanded(path)
    if extension_of(path) == ".npy":
        (case,) = pair_files([expanded(scan or path)], None)
        return volume_image(read_volume(path).array, own_space(case).affine)
    with refusing(path):
        image = nib.load(path)
    if not isinstance(image, Image):
        raise UserError(f"{path} holds no volume; give a .npy, .nii or .nii.gz")
    return image


def scores(prediction: Volume, truth: Volume, affine: ArrayLike | None = None) -> dict[str, float]:
    """All scores of a prediction, by their columns in ``scores.csv`` (docs/outputs.md); NaN where undefined.

    ``pr_auc`` always is: it needs a probability.

    Raises:
        UserError: masks of two grids, or with other values than 0 and 1; `truth` may number its lesions from 1 on.
    """
    predicted, true, space = _read_masks(affine, prediction=prediction, truth=truth)
    return scan_scores(predicted, true, None if space is None else space.spacing_mm)


def lesions(mask: Volume, truth: Volume | None = None, affine: ArrayLike | None = None) -> pd.DataFrame:
    """The lesions of a mask, a row each: ``x_mm``, ``y_mm``, ``z_mm``, ``slice``, ``voxels``, ``volume_cm3``.

    With `truth` the lesions of that instead, with ``found`` and ``dice`` of the `mask` that predicts them, and its
    false lesions (``kind``): the columns of ``per_lesion_scores.csv`` (docs/outputs.md) up to ``dice``. Errors are
    those of `scores`.
    """
    predicted, true, space = _read_masks(affine, mask=mask, **({} if truth is None else {"truth": truth}))
    spacing_mm, affine = (None, np.eye(4)) if space is None else (space.spacing_mm, space.affine)
    rows = lesion_rows(predicted, true, spacing_mm, affine)
    return rows.drop(columns=["kind", "found", "dice"]) if truth is None else rows


def _read_masks(affine: ArrayLike | None, **masks: Volume) -> tuple[np.ndarray, np.ndarray, Space | None]:
    """The first and the last mask, (D, H, W) bool, and where they lie; None where that is unknown, of ``.npy``."""
    with files_of(affine, **masks) as (_, files):
        predicted, *_, truth = *files.values(), *files.values()
        check_alignment(predicted, truth)
        true, labels = read_lesions(truth)
        print_numbered({truth.name: labels})
        spaces = (read_header(path).space for path in (predicted, truth))
        return true if predicted == truth else read_binary(predicted), true, next(filter(None, spaces), None)


@contextmanager
def _opened(
    scan: Volume,
    rpn: Proposer | None,
    model: Segmenter,
    brain: Volume | None,
    scan_dim: Sequence[int] | None,
    contrast: str | None,
    affine: ArrayLike | None,
) -> Iterator[tuple[Case, PreparedScan]]:
    """The case of a scan and the scan as both networks see it; the case's files last as long as the block."""
    if not isinstance(rpn, Proposer | None) or not isinstance(model, Segmenter):
        raise UserError(
            "rpn and model must be what load_rpn and load_strokeformer returned, in this order; exchange them"
        )
    checked(filled(GridSettings(), {"scan_dim": scan_dim}))
    grid = grid_at_test(model, scan_dim, None, "the network of stage 2")
    require_channels(grid.scan_dim[0], model, "the network of stage 2")
    if rpn is not None:
        require_spacing(grid.spacing_mm, rpn, "the network of stage 1", "take one of that size")
    with files_of(affine, scan=scan, **({} if brain is None else {"brain": brain})) as (folder, files):
        case = _case_of(files)
        if rpn is not None:
            require_contrast([case.name], rpn.contrast, "the network of stage 1", contrast or model.contrast)
        cohort = cohort_of([case], grid=grid).on(grid, model.contrast, "the network of stage 2", contrast)
        cohort = replace(cohort, brains=folder)
        cohort.admit()
        yield case, cohort.prepare(case)


def _predict(
    scan: PreparedScan, rpn: Proposer | None, model: Segmenter, batch_size: int = BATCH_SIZE, **sliding
) -> Prediction:
    regions_of = None if rpn is None else rpn_source(rpn, model.hparams["roi_size"])
    windows, loading = checked(SlidingWindow(**sliding)), checked(Loading(batch_size=batch_size))
    return TwoStage(model, regions_of, windows, loading.batch_size).predict(scan)


def _case_of(files: dict[str, Path]) -> Case:
    """The case of a scan with its brain, where there is one."""
    scans, _ = choose_files([files["scan"]], None, None, ("scan", "scan"))
    cases = pair_files(scans, None)
    return replace(cases[0], brain=files["brain"]) if "brain" in files else with_brains(cases, None)[0]


def _image(array: np.ndarray, case: Case) -> Image:
    """A (D, H, W) array on the grid of a case's scan as an image of the scan's orientation."""
    if extension_of(case.scan) == ".npy":
        return volume_image(array[None], own_space(case).affine)
    image = image_like(array, case.scan)
    return type(image).from_bytes(image.to_bytes())  # as it is read again: with an affine
