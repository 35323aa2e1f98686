"""Volumes: on disk ``.npy`` (C, H, W, D) or NIfTI, read as RAS (H, W, D); in memory (C, D, H, W).

H runs left-right, W posterior-anterior, D inferior-superior.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data.files.names import extension_of
from data.files.nifti import open_nifti, require_checksum, require_numbers, require_shape, spacing_of
from data.files.space import Space, Spacing
from utils.errors import UserError
from utils.files import atomic_path

PLACE_FIELDS = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a volume's file says of itself."""

    shape: tuple[int, int, int, int]  # (C, D, H, W)
    affine: np.ndarray | None  # (4, 4) from voxel (H, W, D) to mm in RAS, whatever the unit of the file; None for .npy

    @property
    def space(self) -> Space | None:
        """Where the volume lies; None for ``.npy``."""
        return None if self.affine is None else Space(self.shape[1:], self.affine)


@dataclass(frozen=True)
class Volume:
    """A volume in memory: an array (C, D, H, W), float32 scan or uint8 mask, with the affine of its `Header`."""

    array: np.ndarray
    affine: np.ndarray | None

    @property
    def spacing_mm(self) -> Spacing | None:
        """Size of a voxel along (D, H, W); None for ``.npy``."""
        return None if self.affine is None else spacing_of(self.affine)


def read_volume(path: Path | str, dtype=np.float32) -> Volume:
    """Read one volume as (C, D, H, W).

    Raises:
        UserError: the file is missing, damaged, no 3D volume of real numbers, too large, or has a header that
            contradicts itself.
    """
    with refusing(path):
        if extension_of(path) == ".npy":
            array, affine = _open_npy(path), None
        else:
            with open_nifti(path) as nifti:
                array = np.asarray(nifti.image.dataobj, dtype=np.float32)
                require_checksum(nifti.stream, path)
            affine, array = nifti.ras_affine, nib.apply_orientation(array, nifti.orientation)
            array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2), dtype=dtype)
        require_steps(array, path)
        return Volume(array, affine)


def require_steps(array: np.ndarray, path) -> None:
    """Refuse values that lie so far from 0 that single precision has not a thousand steps between them."""
    low, high = float(array.min()), float(array.max())
    if low < high < np.inf and high - low < 2**-14 * max(abs(low), abs(high)):
        raise UserError(f"{path} holds values from {low:g} to {high:g}, too near to each other; subtract their offset")


def read_header(path: Path | str) -> Header:
    """Shape and place of a volume; no voxel is read, no checksum compared. Raises as `read_volume` does otherwise."""
    with refusing(path):
        if extension_of(path) == ".npy":
            c, h, w, d = _open_npy(path).shape
            return Header((c, d, h, w), None)
        with open_nifti(path) as nifti:
            h, w, d = np.take(nifti.image.shape, np.argsort(nifti.orientation[:, 0])).tolist()
            return Header((math.prod(nifti.image.shape[3:]), d, h, w), nifti.ras_affine)


@contextmanager
def refusing(path: Path | str):
    """Turn whatever a reader raises on a broken file into a `UserError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); allow it: chmod a+r {path}") from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read ({reason}); restore or remove the file") from None


def map_npy(path: Path | str) -> np.ndarray:
    """A memory-mapped ``.npy`` of real numbers; nothing in the file is ever run."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays (.npz); save one array with numpy.save")
    require_numbers(array.shape, array.dtype, path)
    return array


def _open_npy(path) -> np.ndarray:
    """A memory-mapped (C, H, W, D) array."""
    array = map_npy(path)
    require_shape(array.shape, path)
    return array[None] if array.ndim == 3 else array


def write_volume(path: Path | str, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Write a (C, D, H, W) array: `.npy` as (C, H, W, D), NIfTI as `volume_image` has it."""
    with atomic_path(path) as temporary:
        if extension_of(path) == ".npy":
            np.save(temporary, np.ascontiguousarray(array.transpose(0, 2, 3, 1)))
        else:
            nib.save(volume_image(array, np.eye(4) if affine is None else affine), temporary)


def volume_image(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A (C, D, H, W) array as a NIfTI image (H, W, D[, C]) with an `affine` (RAS, mm)."""
    voxels = array.transpose(2, 3, 1, 0)
    image = nib.Nifti1Image(np.ascontiguousarray(voxels[..., 0] if len(array) == 1 else voxels), affine)
    image.header.set_xyzt_units("mm")
    # In both forms: readers differ in which they prefer.
    image.header.set_sform(affine, 1)
    try:
        image.header.set_qform(affine, 1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a quaternion holds no shear: the sform places it alone
        image.header["qform_code"] = 0
    return image


def write_like(path: Path | str, array: np.ndarray, scan_path: Path | str) -> None:
    """Write a (D, H, W) float32 map or uint8 mask in the format, grid and orientation of the scan it belongs to."""
    array = array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.uint8, copy=False)
    if extension_of(scan_path) == ".npy":
        return write_volume(path, array[None])
    image = image_like(array, scan_path)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def image_like(array: np.ndarray, scan_path: Path | str) -> nib.Nifti1Image:
    """A (D, H, W) array as a NIfTI image in the grid and orientation of the NIfTI scan it belongs to.

    Of the scan's header it takes what places it, to the bit, and nothing about intensities or the patient.
    """
    with refusing(scan_path), open_nifti(scan_path) as scan:
        header = scan.header
    to_scan = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), scan.orientation)
    image = type(scan.image)(nib.orientations.apply_orientation(array.transpose(1, 2, 0), to_scan), None)
    for field in PLACE_FIELDS:
        image.header[field] = header[field]
    return image
