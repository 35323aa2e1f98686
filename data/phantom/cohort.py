"""The synthetic cohort as files: each subject's scan, mask and true brain, and ``cohort.csv``."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from data.files.space import Space, resample
from data.files.volumes import read_volume, volume_image, write_volume
from data.phantom.fields import FIELD_OF_VIEW_MM, Grid
from data.phantom.heads import ORIGIN_MM
from data.phantom.settings import PhantomSettings
from data.phantom.subject import make_subject
from data.prepare.overview import describe_scan
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json
from utils.parallel import map_in_order
from utils.progress import progress
from utils.settings import flat

# Raised by hand when the same settings draw other files; a test holds the digest of one subject.
PHANTOM_VERSION = 1
SPACE = "space-MNI152NLin2009aSym"
TILT_DEGREES = (12.0, 1.0, 3.0)  # about left-right, posterior-anterior, inferior-superior, as in ISLES 2022
# (qform_code, sform_code) of scan, mask and brain mask: 1 is the scanner's space, 2 another scan's. An oblique cohort's
# headers are ISLES 2022's, where a mask has only an sform.
STRAIGHT, TILTED, TILTED_FLAIR = ((1, 1), (1, 1), (1, 1)), ((2, 1), (0, 2), (2, 1)), ((1, 1), (0, 2), (1, 1))


class SubjectFiles(NamedTuple):
    scan: Path
    mask: Path
    brain: Path


def subject_files(out_dir: Path, index: int, settings: PhantomSettings) -> SubjectFiles:
    """A subject's files, named as ATLAS v2.0 (T1w) or ISLES 2022 (FLAIR, DWI) would."""
    if settings.modality == "t1w":
        subject = f"sub-r{index // 999 + 1:03d}s{index % 999 + 1:03d}_ses-1_{SPACE}"
        scan, mask = f"{subject}_T1w", f"{subject}_label-L_desc-T1lesion_mask"
    else:
        subject = f"sub-strokecase{index + 1:04d}_ses-0001"
        scan, mask = f"{subject}_{settings.modality}", f"{subject}_msk"
    names = {"Scans": scan, "Masks": mask, "TrueBrains": f"{scan}_desc-brain_mask"}
    return SubjectFiles(*(out_dir / folder / f"{name}{settings.ext}" for folder, name in names.items()))


def write_subject(index: int, settings: PhantomSettings, out_dir: Path) -> dict:
    """Write a subject's files unless they are there, and return its row of ``cohort.csv``."""
    files = subject_files(out_dir, index, settings)
    scan_grid, mask_grid = Grid(settings.spacing), Grid(settings.mask_spacing or settings.spacing)
    scan_affine, mask_affine = (_affine_of(grid, settings.oblique) for grid in (scan_grid, mask_grid))
    if not all(file.exists() for file in files):
        subject = make_subject(settings, index)
        arrays = subject.scan, subject.mask, subject.brain[None].astype(np.uint8)
        tilted = TILTED_FLAIR if settings.modality == "flair" else TILTED
        codes = tilted if settings.oblique else STRAIGHT
        for placed in zip(files, arrays, (scan_affine, mask_affine, scan_affine), codes, strict=True):
            _write_placed(*placed)
    mask, brain = (read_volume(path, np.uint8).array > 0 for path in (files.mask, files.brain))
    on_mask = resample(brain, Space(brain.shape[1:], scan_affine), Space(mask.shape[1:], mask_affine))
    on_scan = describe_scan(np.zeros_like(brain[0]), brain[0], scan_grid.spacing_mm)
    name, session = files.scan.name.split("_")[:2]
    return {
        "subject": name.removeprefix("sub-"),
        "session": session.removeprefix("ses-"),
        "scan": files.scan.name,
        "mask": files.mask.name,
        **describe_scan(mask[0], on_mask[0], mask_grid.spacing_mm),
        **{column: on_scan[column] for column in ("shape", "spacing_mm")},
    }


def write_cohort(settings: PhantomSettings, out_dir: Path, num_workers: int = 1) -> None:
    """Write all subjects, ``cohort.csv`` and ``phantom.json``; the files are the same for any `num_workers`."""
    _claim(out_dir, settings)
    write = partial(write_subject, settings=settings, out_dir=out_dir)
    subjects = map_in_order(write, range(settings.n_subjects), num_workers)
    rows = list(progress(subjects, "Drawing synthetic scans", settings.n_subjects))
    with atomic_path(out_dir / "cohort.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _claim(out_dir: Path, settings: PhantomSettings) -> None:
    """Write the settings into the folder; refuse one that holds a cohort of other settings, or other scans."""
    path, fixed = out_dir / "phantom.json", flat(settings)
    if path.exists():
        earlier = read_json(path)
        if earlier.get("version") != PHANTOM_VERSION:
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of another version; remove it")
        if earlier["settings"] != fixed:
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of other settings; give another folder")
    elif any(out_dir.glob("Scans/*")) or any(out_dir.glob("Masks/*")):
        # Our names are those of ATLAS and ISLES: a patient's scan would be kept as if it were ours.
        raise UserError(f"--out_dir {out_dir} holds scans that are not synthetic; give another folder")
    what = "Synthetic: drawn from the MNI152 templates by data.phantom; these are no patients."
    write_json(path, {"what": what, "settings": fixed, "version": PHANTOM_VERSION})


def _affine_of(grid: Grid, oblique: bool) -> np.ndarray:
    """(4, 4) from voxel (H, W, D) to mm; `oblique` turns the voxels about the middle of the field of view."""
    affine = np.diag([*grid.spacing_hwd, 1.0])
    affine[:3, 3] = [axis[0] for axis in grid.axes_mm] - np.array(ORIGIN_MM)
    if not oblique:
        return affine
    middle = (np.array(FIELD_OF_VIEW_MM) - 1) / 2 - ORIGIN_MM
    turn = nib.eulerangles.euler2mat(*np.radians(TILT_DEGREES[::-1]))  # takes z, y, x
    return nib.affines.from_matvec(turn, middle - turn @ middle) @ affine


def _write_placed(path: Path, array: np.ndarray, affine: np.ndarray, codes: tuple[int, int]) -> None:
    """`write_volume` with the codes of qform and sform."""
    if path.suffix == ".npy":
        return write_volume(path, array)
    image = volume_image(array, affine)
    image.header["qform_code"], image.header["sform_code"] = codes
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
