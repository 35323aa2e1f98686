"""The synthetic cohort as files: each subject's scan and mask in ATLAS's names, and ``cohort.csv``."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from data.fingerprints import code_digest
from data.head import head_mask
from data.phantom.heads import grid_mm, paint_tissue, smooth_field, warp_head
from data.phantom.lesions import darken_distractors, draw_lesions
from data.prepare.overview import describe_scan
from data.volumes import read_volume, write_volume
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_json
from utils.parallel import map_in_order
from utils.progress import progress

CODE = code_digest("data/phantom")
SPACE = "space-MNI152NLin2009aSym"


@dataclass(frozen=True)
class Settings:
    """What fixes the files of a cohort, and so is kept beside them in ``phantom.json``."""

    n_subjects: int
    spacing: float
    seed: int
    ext: str
    healthy_fraction: float
    lesion_contrast: float
    warp_mm: float


# --- scans ---------------------------------------------------------------------------------------------


def make_subject(settings: Settings, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scan (1, D, H, W) float32 in ATLAS-like units (white matter near 80, air near 0) and mask (1, D, H, W) uint8."""
    # One stream for each part, so that a voxel more or less in one does not change the others.
    anatomy, lesions, noise = (np.random.default_rng([settings.seed, index, part]) for part in range(3))
    head = warp_head(settings.spacing, settings.warp_mm, anatomy)
    white = anatomy.uniform(70, 90)
    levels = {"white": white, "grey": white * anatomy.uniform(0.65, 0.78), "fluid": white * anatomy.uniform(0.2, 0.35)}
    scan = paint_tissue(head, levels)
    darken_distractors(scan, head, anatomy)
    bias = np.exp(0.12 * smooth_field(head.template_mm, 220, anatomy))
    mask = np.zeros(scan.shape, bool)
    if index not in healthy_subjects(settings):
        opacity = draw_lesions(head, settings.spacing, lesions)
        texture = 1 + 0.15 * smooth_field(head.template_mm, 12, lesions)
        scan += settings.lesion_contrast * opacity * (levels["fluid"] * texture - scan)
        mask = opacity > 0.5
    scan = rician(scan * bias, 0.025 * white, noise)
    return scan.transpose(2, 0, 1)[None], mask.transpose(2, 0, 1)[None].astype(np.uint8)


def rician(scan: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise (Gudbjartsson and Patz, 1995, 10.1002/mrm.1910340618)."""
    real, imaginary = rng.standard_normal((2, *scan.shape), np.float32) * np.float32(sigma)
    return np.hypot(scan + real, imaginary).astype(np.float32)


def healthy_subjects(settings: Settings) -> set[int]:
    """Indices of the subjects without lesion: just the wanted fraction, anywhere in the cohort."""
    n_healthy = round(settings.healthy_fraction * settings.n_subjects)
    shuffled = np.random.default_rng([settings.seed, 0, 3]).permutation(settings.n_subjects)
    return set(shuffled[:n_healthy].tolist())


# --- files ---------------------------------------------------------------------------------------------


def subject_files(out_dir: Path, index: int, ext: str) -> tuple[Path, Path]:
    subject = f"sub-r{index // 999 + 1:03d}s{index % 999 + 1:03d}_ses-1_{SPACE}"
    return (
        out_dir / "Scans" / f"{subject}_T1w{ext}",
        out_dir / "Masks" / f"{subject}_label-L_desc-T1lesion_mask{ext}",
    )


def write_subject(index: int, settings: Settings, out_dir: Path) -> dict:
    """Write a subject's scan and mask unless they are there, and return its row of ``cohort.csv``."""
    scan_path, mask_path = subject_files(out_dir, index, settings.ext)
    if not (scan_path.exists() and mask_path.exists()):
        scan, mask = make_subject(settings, index)
        affine = np.diag([settings.spacing] * 3 + [1.0])
        affine[:3, 3] = grid_mm(settings.spacing)[:, 0, 0, 0] - [98, 134, 72]
        write_volume(scan_path, scan, affine)
        write_volume(mask_path, mask, affine)
    mask, head = read_volume(mask_path).array[0] > 0, head_mask(read_volume(scan_path).array[0])
    subject, session = scan_path.name.split("_")[:2]
    return {
        "subject": subject.removeprefix("sub-"),
        "session": session.removeprefix("ses-"),
        "scan": scan_path.name,
        "mask": mask_path.name,
        **describe_scan(mask, head, (settings.spacing,) * 3),
    }


def write_cohort(settings: Settings, out_dir: Path, num_workers: int = 1) -> None:
    """Write all subjects, ``cohort.csv`` and ``phantom.json``; the files are the same for any `num_workers`."""
    _claim(out_dir, settings)
    write = partial(write_subject, settings=settings, out_dir=out_dir)
    subjects = map_in_order(write, range(settings.n_subjects), num_workers)
    rows = list(progress(subjects, "Drawing synthetic scans", settings.n_subjects))
    with atomic_path(out_dir / "cohort.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _claim(out_dir: Path, settings: Settings) -> None:
    """Note the settings in the folder; refuse one that holds a cohort of other settings, or other scans."""
    note = out_dir / "phantom.json"
    if note.exists():
        earlier = read_json(note)
        if earlier["settings"] != vars(settings):
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of other settings; give another folder")
        if earlier.get("code") != CODE:
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of another version; remove it")
    elif any(out_dir.glob("Scans/*")) or any(out_dir.glob("Masks/*")):
        # Our names are ATLAS's: a patient's scan would be kept as if it were ours, and the two would mix.
        raise UserError(f"--out_dir {out_dir} holds scans that are not synthetic; give another folder")
    what = "Synthetic: drawn from the MNI152 templates by data.phantom; these are no patients."
    write_json(note, {"what": what, "settings": vars(settings), "code": CODE})
