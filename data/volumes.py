"""3D volumes: read, write, head mask and normalisation.

On disk a volume is ``.npy`` (C, H, W, D) or NIfTI, which is read in its closest RAS orientation as (H, W, D).
In memory it is (C, D, H, W): H left-right, W posterior-anterior, D inferior-superior.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from utils.errors import UserError
from utils.files import atomic_path

EXTENSIONS = (".nii.gz", ".nii", ".npy")  # .nii.gz first: it ends in no other
# The head begins at this share of the way from air to tissue. On ATLAS's raw T1w, where air is 0 and the median
# tissue about 60, that is the reference threshold of 8.0.
HEAD_SHARE = 0.13
HEAD_PERCENTILES = (1, 99)  # intensities outside are clipped: vessels, fat and spikes say nothing of lesions


@dataclass(frozen=True)
class Volume:
    """A volume in memory.

    array: (C, D, H, W), float32 scan or uint8 mask.
    spacing_mm: size of a voxel along (D, H, W), or None where the file does not tell.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float] | None


def extension_of(path: Path | str) -> str | None:
    """``.npy``, ``.nii`` or ``.nii.gz``; None for a file that is no volume."""
    return next((e for e in EXTENSIONS if str(path).lower().endswith(e)), None)


def stem_of(path: Path | str) -> str:
    """The file's name without its volume extension (``Path.stem`` would leave the .nii of .nii.gz)."""
    name = Path(path).name
    return name[: -len(extension_of(name) or "")] or name


# --- reading -------------------------------------------------------------------------------------------


def read_volume(path: Path | str, dtype=np.float32) -> Volume:
    """Read one volume as (C, D, H, W).

    Raises:
        UserError: the file is missing, truncated, pickled, of an unknown extension or not 3D with a channel.
    """
    try:
        return _read_npy(path, dtype) if extension_of(path) == ".npy" else _read_nifti(path, dtype)
    except UserError:
        raise
    except Exception as error:  # the readers raise a dozen types for a broken file, and each means the same
        raise UserError(f"{path} cannot be read ({_first_line(error)}); restore or remove the file") from None


def volume_shape(path: Path | str) -> tuple[int, int, int]:
    """(D, H, W) from the header alone: no voxel is read."""
    try:
        if extension_of(path) == ".npy":
            h, w, d = np.load(path, mmap_mode="r", allow_pickle=False).shape[-3:]
        else:
            h, w, d = nib.as_closest_canonical(nib.load(path)).shape[:3]
    except Exception as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}); restore or remove the file") from None
    return d, h, w


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_npy(path, dtype) -> Volume:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim == 3:
        array = array[None]
    _require_4d(array, path)
    return Volume(np.ascontiguousarray(array.transpose(0, 3, 1, 2), dtype=dtype), None)


def _read_nifti(path, dtype) -> Volume:
    image = nib.as_closest_canonical(nib.load(path))
    array = np.asarray(image.dataobj, dtype=np.float32)
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    _require_4d(array, path)
    h, w, d = (float(s) for s in image.header.get_zooms()[:3])
    return Volume(np.ascontiguousarray(array.transpose(0, 3, 1, 2), dtype=dtype), (d, h, w))


def _require_4d(array: np.ndarray, path) -> None:
    if array.ndim != 4 or 0 in array.shape:
        raise UserError(f"{path} has shape {array.shape}; a volume is (C, H, W, D) or (H, W, D)")


# --- writing -------------------------------------------------------------------------------------------


def write_volume(path: Path | str, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Write a (C, D, H, W) array: `.npy` as (C, H, W, D), NIfTI as (H, W, D) with `affine` (RAS)."""
    on_disk = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    with atomic_path(path) as temporary:
        if extension_of(path) == ".npy":
            np.save(temporary, on_disk)
        else:
            nib.save(nib.Nifti1Image(on_disk[0], np.eye(4) if affine is None else affine), temporary)


def write_like(path: Path | str, array: np.ndarray, scan_path: Path | str) -> None:
    """Write a (D, H, W) mask in the file format, grid, orientation and affine of the scan it belongs to."""
    if extension_of(scan_path) == ".npy":
        return write_volume(path, array[None])
    scan = nib.load(scan_path)
    to_scan = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.io_orientation(scan.affine))
    on_disk = nib.orientations.apply_orientation(array.transpose(1, 2, 0), to_scan)
    image = nib.Nifti1Image(on_disk.astype(np.uint8), scan.affine)
    image.set_sform(scan.affine, int(scan.header["sform_code"]) or 1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


# --- head and intensities ------------------------------------------------------------------------------


def head_mask(scan: np.ndarray) -> np.ndarray:
    """Separate the head from air, whatever the intensity scale and offset.

    Otsu's threshold finds air and tissue; the head begins `HEAD_SHARE` of the way between their medians, so that
    dark CSF and lesions at the brain's rim belong to it. The largest component is kept, holes are filled slice by
    slice (a lesion is no hole in the head).

    Args:
        scan: (D, H, W), finite, any units.

    Returns:
        (D, H, W) bool; all False for a constant scan.
    """
    low, high = float(scan.min()), float(np.percentile(scan[::2, ::2, ::2], 99.5))
    if not low < high:
        return np.zeros(scan.shape, bool)
    sample = np.clip(scan[::2, ::2, ::2], low, high)
    otsu = threshold_otsu(sample)
    air, tissue = np.median(sample[sample <= otsu]), np.median(sample[sample > otsu])
    head = scan > air + HEAD_SHARE * (tissue - air)
    return _fill_slices(_largest_component(ndimage.binary_opening(head)))


def _largest_component(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    if n <= 1:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _fill_slices(mask: np.ndarray) -> np.ndarray:
    filled = mask.copy()
    for z in np.flatnonzero(mask.any((1, 2))):
        filled[z] = ndimage.binary_fill_holes(mask[z])
    return filled


def normalise(scan: np.ndarray, head: np.ndarray) -> np.ndarray:
    """Clip to the 1st and 99th percentile of the head and scale to [0, 1], each channel by itself.

    Args:
        scan: (C, D, H, W) float32.
        head: (D, H, W) bool.

    Returns:
        (C, D, H, W) float32 in [0, 1].
    """
    scaled = np.empty(scan.shape, np.float32)
    for channel, out in zip(scan, scaled, strict=True):
        low, high = np.percentile(channel[head], HEAD_PERCENTILES) if head.any() else (0.0, 1.0)
        np.clip((channel - low) / max(high - low, 1e-12), 0, 1, out=out, casting="same_kind")
    return scaled
