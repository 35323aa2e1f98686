"""The synthetic cohort: the scan, lesion mask and true brain of each subject, as arrays and as files."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from data.files.space import Spacing
from data.files.volumes import read_volume, volume_image, write_volume
from data.phantom.ages import draw_ageing, paint_ageing
from data.phantom.appearance import STAND_OUT, paint_lesions, paint_past, stand_out
from data.phantom.contrast import MODALITIES, draw_levels, paint_brain, paint_structures
from data.phantom.heads import FIELD_OF_VIEW_MM, ORIGIN_MM, Grid, Head, warp_head
from data.phantom.lesions import draw_lesions
from data.phantom.masks import describe_masks, draw_real_lesions, list_masks
from data.phantom.scanner import draw_scanner, measure, receive_field
from data.phantom.skull import paint_outside
from data.phantom.statistics import LAWS, even_numbers
from data.prepare.cohort import describe_scan
from data.settings import PhantomSettings
from utils.errors import UserError
from utils.files import atomic_path, read_json, write_csv, write_json
from utils.progress import map_in_order
from utils.settings import flat

# Raised by hand when the same settings draw other files; a test holds the digest of one subject.
PHANTOM_VERSION = 5
# One random stream for each part, so that a voxel more or less in one does not change the others, nor a skull the
# brain. 3 is that of `healthy_subjects`.
STREAMS = {"anatomy": 0, "lesions": 1, "noise": 2, "outside": 4, "contrast": 5, "scanner": 9}
STREAMS |= {"age": 10, "structures": 11, "appearance": 12, "past": 13}
SUBJECTS, GRIDS = 6, 7  # random streams of centres
NEARLY_ONE = 0.9999  # in the masks of one of ATLAS's centres, in the place of 1
TILT_DEGREES = (12.0, 1.0, 3.0)  # about left-right, posterior-anterior, inferior-superior, as in ISLES 2022
# (qform_code, sform_code) of scan, mask and brain mask: 1 is the scanner's space, 2 another scan's. An oblique cohort's
# headers are ISLES 2022's, where a mask has only an sform.
STRAIGHT, TILTED, TILTED_FLAIR = ((1, 1), (1, 1), (1, 1)), ((2, 1), (0, 2), (2, 1)), ((1, 1), (0, 2), (1, 1))


@dataclass(frozen=True)
class Subject:
    """One synthetic scan."""

    scan: np.ndarray  # (1, D, H, W) float32, white matter near 80
    mask: np.ndarray  # (1, D, H, W) uint8
    brain: np.ndarray  # (D, H, W) bool, the true brain with its sulci and ventricles


def draw_head(settings: PhantomSettings, index: int) -> Head:
    """The head of a subject on the grid of its scan."""
    streams = _streams(settings, index)
    ageing = draw_ageing(settings.variety, streams["age"])
    return warp_head(Grid(settings.spacing), settings.warp_mm, streams["anatomy"], ageing.atrophy if ageing else None)


def _streams(settings: PhantomSettings, index: int) -> dict[str, np.random.Generator]:
    return {name: np.random.default_rng([settings.seed, index, part]) for name, part in STREAMS.items()}


@threadpool_limits.wrap(limits=1)  # several threads add in another order: other last digits, other files
def make_subject(settings: PhantomSettings, index: int, defaced: bool = True) -> Subject:
    streams, modality = _streams(settings, index), MODALITIES[settings.modality]
    ageing, head = draw_ageing(settings.variety, streams["age"]), draw_head(settings, index)
    levels = draw_levels(modality, settings.variety, streams["contrast"], streams["outside"])
    signal = paint_brain(head, modality, levels, settings.variety, streams["contrast"])
    paint_structures(signal, head, settings.modality, levels, settings.variety, streams["structures"])
    if ageing:
        paint_ageing(signal, head, settings.modality, levels, ageing, streams["age"])
        paint_past(signal, head, settings.modality, levels, settings.variety, streams["past"])
    mask, without = np.zeros(signal.shape, bool), signal.copy()
    if index not in healthy_subjects(settings):
        opacity = lesion_opacity(head, settings, index, streams["lesions"])
        how = settings.modality, levels, settings.variety, streams["appearance"]
        signal += settings.lesion_contrast * (paint_lesions(signal, head, opacity, *how) - signal)
        mask = opacity > 0.5
    removed = ~head.brain
    if not settings.stripped:
        signal[removed], removed[removed] = paint_outside(head, levels, streams["outside"])
        removed &= defaced
    scanner = draw_scanner(modality, levels, settings.variety, streams["scanner"])
    field = receive_field(head, scanner, streams["contrast"])
    scan = measure(signal * field, head, modality, scanner, streams["noise"])
    if mask.any() and settings.modality in STAND_OUT:
        without = measure(without * field, head, modality, scanner, _streams(settings, index)["noise"])
        stand_out(scan, without, head, mask, settings.modality, settings.lesion_contrast, streams["appearance"])
    scan[removed] = 0
    scan, mask, brain = (np.ascontiguousarray(array.transpose(2, 0, 1)) for array in (scan, mask, head.brain))
    return Subject(scan[None], mask[None].astype(np.uint8), brain)


def lesion_opacity(head: Head, settings: PhantomSettings, index: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, D) float32 in [0, 1] of a subject's lesions, drawn or those of ``--lesion_masks``."""
    if settings.lesion_masks:
        return draw_real_lesions(head, list_masks(settings.lesion_masks), settings.variety, rng)
    evenly = even_numbers(settings.seed, index)
    return draw_lesions(head, LAWS[settings.modality], evenly, settings.variety, rng)


def healthy_subjects(settings: PhantomSettings) -> set[int]:
    """Indices of the subjects without lesion, anywhere in the cohort."""
    n_healthy = round(settings.healthy_fraction * settings.n_subjects)
    shuffled = np.random.default_rng([settings.seed, 0, 3]).permutation(settings.n_subjects)
    return set(shuffled[:n_healthy].tolist())


@dataclass(frozen=True)
class Centre:
    """A centre; every second one has the cohort's voxel size."""

    name: str  # as in ATLAS: R001, R002, ..., and SOOP, whose subjects' names are of another kind
    spacing_mm: Spacing
    axes: str  # of the stored voxels, such as LPS
    lesion: float  # value of its masks

    def stored(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """An image in RAS along the axes of the centre."""
        ras, own = (nib.orientations.axcodes2ornt(axes) for axes in ("RAS", self.axes))
        return image.as_reoriented(nib.orientations.ornt_transform(ras, own))


def centre_of(settings: PhantomSettings, index: int) -> Centre | None:
    """The centre of a subject: each has one of the first subjects, and the first centres most of the others."""
    if (n := settings.centres) is None:
        return None
    number = index if index < n else int(n * np.random.default_rng([settings.seed, index, SUBJECTS]).random() ** 2)
    rng = np.random.default_rng([settings.seed, number, GRIDS])
    axes = "".join(rng.permutation([rng.choice(list(ends)) for ends in ("RL", "AP", "SI")]))
    d, h, w = np.multiply(settings.spacing, rng.uniform(0.75, 1.25, 3) if number % 2 else 1).round(2).tolist()
    return Centre("SOOP" if number == n - 1 else f"R{number + 1:03d}", (d, h, w), axes, 1 if number else NEARLY_ONE)


class SubjectFiles(NamedTuple):
    scan: Path
    mask: Path
    brain: Path


def subject_files(out_dir: Path, index: int, settings: PhantomSettings) -> SubjectFiles:
    """A subject's files, named as in ATLAS (T1w), v3.0 of it where there are centres, or ISLES 2022 (FLAIR, DWI)."""
    scans, masks = out_dir / "Scans", out_dir / "Masks"
    if centre := centre_of(settings, index):
        subject = f"sub-{centre.name.lower()}{'0' if centre.name == 'SOOP' else 's'}{index + 1:03d}"
        name, scans = f"{subject}_ses-1_space-orig", out_dir / centre.name / subject / "ses-1/anat"
        masks, scan, brain = scans, f"{name}_desc-brain_T1w", f"{name}_desc-brain_mask"
        mask = f"{name}_label-lesion_desc-T1lesion_mask"
    elif settings.modality == "t1w":
        subject = f"sub-r{index // 999 + 1:03d}s{index % 999 + 1:03d}_ses-1_space-MNI152NLin2009aSym"
        scan, mask = f"{subject}_T1w", f"{subject}_label-L_desc-T1lesion_mask"
        brain = f"{scan}_desc-brain_mask"
    else:
        subject = f"sub-strokecase{index + 1:04d}_ses-0001"
        scan, mask = f"{subject}_{settings.modality}", f"{subject}_msk"
        brain = f"{scan}_desc-brain_mask"
    names = scans / scan, masks / mask, out_dir / "TrueBrains" / brain
    return SubjectFiles(*(name.with_name(name.name + settings.ext) for name in names))


def write_subject(index: int, settings: PhantomSettings, out_dir: Path) -> dict:
    """Write a subject's files unless they are there, and return its row of ``cohort.csv``."""
    files = subject_files(out_dir, index, settings)
    if centre := centre_of(settings, index):
        settings = replace(settings, spacing=centre.spacing_mm)
    if not all(file.exists() for file in files):
        subject = make_subject(settings, index)
        mask = subject.mask * np.float32(centre.lesion) if centre else subject.mask
        arrays = subject.scan, mask, subject.brain[None].astype(np.uint8)
        tilted = TILTED_FLAIR if settings.modality == "flair" else TILTED
        codes = tilted if settings.oblique else STRAIGHT
        affine = _affine_of(Grid(settings.spacing), settings.oblique)
        for path, array, code in zip(files, arrays, codes, strict=True):
            if settings.ext == ".npy":
                write_volume(path, array)
                continue
            image = volume_image(array, affine)
            image = centre.stored(image) if centre else image
            image.header["qform_code"], image.header["sform_code"] = code
            with atomic_path(path) as temporary:
                nib.save(image, temporary)
    mask, brain = (read_volume(path).array > 0.5 for path in (files.mask, files.brain))
    name, session = files.scan.name.split("_")[:2]
    return {
        "subject": name.removeprefix("sub-"),
        "session": session.removeprefix("ses-"),
        "scan": files.scan.name,
        "mask": files.mask.name,
        **describe_scan(mask[0], brain[0], settings.spacing),
    }


def write_cohort(settings: PhantomSettings, out_dir: Path, num_workers: int = 1) -> None:
    """Write all subjects, ``cohort.csv`` and ``phantom.json``, the same for any `num_workers`; refuses other scans."""
    path, fixed = out_dir / "phantom.json", flat(settings)
    earlier = read_json(path) if path.exists() else {}
    if earlier:
        if earlier.get("version") != PHANTOM_VERSION:
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of another version; remove it")
        if earlier["settings"] != fixed:
            raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of other settings; give another folder")
    elif any(chain(*map(out_dir.glob, ("Scans/*", "Masks/*", "*/sub-*/")))):
        # Our names are those of ATLAS and ISLES: a patient's scan would be kept as if it were ours.
        raise UserError(f"--out_dir {out_dir} holds scans that are not synthetic; give another folder")
    masks = None
    if folder := settings.lesion_masks:  # each is checked, which takes a while
        masks = describe_masks(folder, earlier.get("lesion_masks"), num_workers)
    if earlier and earlier["lesion_masks"] != masks:
        raise UserError(f"--out_dir {out_dir} holds a synthetic cohort of other lesion masks; give another folder")
    what = "Synthetic: drawn from the MNI152 templates by data.phantom; these are no patients."
    write_json(path, {"what": what, "settings": fixed, "lesion_masks": masks, "version": PHANTOM_VERSION})
    write = partial(write_subject, settings=settings, out_dir=out_dir)
    rows = list(map_in_order(write, range(settings.n_subjects), num_workers, "Drawing synthetic scans"))
    write_csv(out_dir / "cohort.csv", pd.DataFrame(rows))


def _affine_of(grid: Grid, oblique: bool) -> np.ndarray:
    """(4, 4) from voxel (H, W, D) to mm; `oblique` turns the voxels about the middle of the field of view."""
    affine = np.diag([*grid.spacing_hwd, 1.0])
    affine[:3, 3] = [axis[0] for axis in grid.axes_mm] - np.array(ORIGIN_MM)
    if not oblique:
        return affine
    middle = (np.array(FIELD_OF_VIEW_MM) - 1) / 2 - ORIGIN_MM
    turn = nib.eulerangles.euler2mat(*np.radians(TILT_DEGREES[::-1]))  # takes z, y, x
    return nib.affines.from_matvec(turn, middle - turn @ middle) @ affine
