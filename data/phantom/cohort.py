"""The synthetic cohort as files: each subject's scan, mask and true brain, and ``cohort.csv``."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data.files.space import Space, resample
from data.files.volumes import read_volume
from data.phantom.fields import Grid
from data.phantom.place import affine_of, codes_of, write_placed
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
    scan_grid, mask_grid = Grid.of(settings.spacing), Grid.of(settings.mask_spacing or settings.spacing)
    scan_affine, mask_affine = (affine_of(grid, settings.oblique) for grid in (scan_grid, mask_grid))
    if not all(file.exists() for file in files):
        subject, codes = make_subject(settings, index), codes_of(settings.modality, settings.oblique)
        write_placed(files.scan, subject.scan, scan_affine, codes["scan"])
        write_placed(files.mask, subject.mask, mask_affine, codes["mask"])
        write_placed(files.brain, subject.brain[None].astype(np.uint8), scan_affine, codes["brain"])
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
