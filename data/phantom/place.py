"""The place of a synthetic volume: its affine, and the codes of its NIfTI header."""

from pathlib import Path

import nibabel as nib
import numpy as np

from data.files.names import extension_of
from data.files.volumes import volume_image, write_volume
from data.phantom.fields import FIELD_OF_VIEW_MM, Grid
from data.phantom.heads import ORIGIN_MM
from utils.files import atomic_path

TILT_DEGREES = (12.0, 1.0, 3.0)  # about left-right, posterior-anterior, inferior-superior, as in ISLES 2022
# (qform_code, sform_code): 1 is the scanner's space, 2 another scan's. An oblique cohort's headers are ISLES 2022's,
# where a mask has only an sform.
STRAIGHT = {"scan": (1, 1), "mask": (1, 1), "brain": (1, 1)}
TILTED = {"scan": (2, 1), "mask": (0, 2), "brain": (2, 1)}
TILTED_FLAIR = {**TILTED, "scan": (1, 1), "brain": (1, 1)}


def codes_of(modality: str, oblique: bool) -> dict[str, tuple[int, int]]:
    """The codes of a cohort's scans, masks and brain masks."""
    tilted = TILTED_FLAIR if modality == "flair" else TILTED
    return tilted if oblique else STRAIGHT


def affine_of(grid: Grid, oblique: bool) -> np.ndarray:
    """(4, 4) from voxel (H, W, D) to mm; `oblique` turns the voxels about the middle of the field of view."""
    affine = np.diag([*grid.spacing_hwd, 1.0])
    affine[:3, 3] = [axis[0] for axis in grid.axes_mm] - np.array(ORIGIN_MM)
    if not oblique:
        return affine
    middle = (np.array(FIELD_OF_VIEW_MM) - 1) / 2 - ORIGIN_MM
    turn = nib.eulerangles.euler2mat(*np.radians(TILT_DEGREES[::-1]))  # takes z, y, x
    return nib.affines.from_matvec(turn, middle - turn @ middle) @ affine


def write_placed(path: Path, array: np.ndarray, affine: np.ndarray, codes: tuple[int, int]) -> None:
    """`write_volume` with the codes of qform and sform."""
    if extension_of(path) == ".npy":
        return write_volume(path, array)
    image = volume_image(array, affine)
    image.header["qform_code"], image.header["sform_code"] = codes
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
