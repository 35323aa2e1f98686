"""3D volumes: read, write, head mask and normalisation.

On disk a volume is ``.npy`` (C, H, W, D) or NIfTI, which is read in its closest RAS orientation as (H, W, D).
In memory it is (C, D, H, W): H left-right, W posterior-anterior, D inferior-superior.
"""

import math
from contextlib import contextmanager
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
MAX_BYTES = 2**30  # of a volume on disk, uncompressed: a whole head at 0.5 mm has half of that
GZIP_RATIO = 1032  # deflate cannot compress more, so a header that claims more than that lies
HEAD_PERCENTILES = (1, 99)  # intensities outside are clipped: vessels, fat and spikes say nothing of lesions


@dataclass(frozen=True)
class Header:
    """What a volume's file says of itself.

    shape: (C, D, H, W).
    affine: (4, 4) from voxel (H, W, D) to mm in RAS; None for ``.npy``, which does not tell.
    """

    shape: tuple[int, int, int, int]
    affine: np.ndarray | None


@dataclass(frozen=True)
class Volume:
    """A volume in memory.

    array: (C, D, H, W), float32 scan or uint8 mask.
    affine: as in `Header`.
    """

    array: np.ndarray
    affine: np.ndarray | None

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Size of a voxel along (D, H, W), or None where the file does not tell."""
        return None if self.affine is None else spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Size of a voxel in mm along (D, H, W)."""
    h, w, d = (float(size) for size in nib.affines.voxel_sizes(affine))
    return d, h, w


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
        UserError: the file is missing, truncated, pickled, of an unknown extension, holds no real numbers, says that
            it is larger than it is, or is not 3D with a channel.
    """
    with refusing(path):
        if extension_of(path) == ".npy":
            array, affine = _open_npy(path), None
        else:
            image, orientation = _open_nifti(path)
            affine = _ras_affine(image, orientation)
            array = nib.apply_orientation(np.asarray(image.dataobj, dtype=np.float32), orientation)
            array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        return Volume(np.ascontiguousarray(array.transpose(0, 3, 1, 2), dtype=dtype), affine)


def read_header(path: Path | str) -> Header:
    """Shape and place of a volume; no voxel is read. Raises as `read_volume` does."""
    with refusing(path):
        if extension_of(path) == ".npy":
            c, h, w, d = _open_npy(path).shape
            return Header((c, d, h, w), None)
        image, orientation = _open_nifti(path)
        h, w, d = np.take(image.shape, np.argsort(orientation[:, 0])).tolist()
        return Header((math.prod(image.shape[3:]), d, h, w), _ras_affine(image, orientation))


def volume_shape(path: Path | str) -> tuple[int, int, int]:
    """(D, H, W) from the header alone."""
    return read_header(path).shape[1:]


@contextmanager
def refusing(path: Path | str):
    """Turn whatever a reader raises on a broken file, a dozen types, into a `UserError` that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read ({reason}); restore or remove the file") from None


def map_npy(path: Path | str) -> np.ndarray:
    """A memory-mapped ``.npy`` of real numbers; nothing in the file is ever run."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays (.npz); save one array with numpy.save")
    _require_numbers(array.shape, array.dtype, path)
    return array


def _open_npy(path) -> np.ndarray:
    """A memory-mapped (C, H, W, D) array."""
    array = map_npy(path)
    _require_shape(array.shape, path)
    return array[None] if array.ndim == 3 else array


def _open_nifti(path) -> tuple[nib.Nifti1Image, np.ndarray]:
    """An image whose voxels are not read yet, and the nibabel orientation that turns them to RAS."""
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise UserError(f"{path} is no NIfTI volume; convert it, e.g. with nibabel or dcm2niix")
    _require_shape(image.shape, path)
    _require_numbers(image.shape, image.get_data_dtype(), path)
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    if claimed > Path(path).stat().st_size * (GZIP_RATIO if extension_of(path) == ".nii.gz" else 1):
        raise UserError(f"{path} is shorter than its header says; copy or download it again")
    orientation = nib.io_orientation(image.affine) if np.isfinite(image.affine).all() else np.full((3, 2), np.nan)
    if np.isnan(orientation).any() or not min(spacing_of(image.affine)) > 0:
        raise UserError(f"{path} has an affine that places no volume; mend its header")
    return image, orientation


def _require_shape(shape: tuple[int, ...], path) -> None:
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(f"{path} has shape {shape}; a volume is (C, H, W, D) in .npy or (H, W, D) in NIfTI")


def _require_numbers(shape: tuple[int, ...], dtype: np.dtype, path) -> None:
    if dtype.kind not in "biuf":
        raise UserError(f"{path} holds values of type {dtype}; a volume holds real numbers")
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise UserError(f"{path} has shape {shape} and more than {MAX_BYTES >> 20} MiB; crop or resample it")


def _ras_affine(image: nib.Nifti1Image, orientation: np.ndarray) -> np.ndarray:
    return image.affine @ nib.orientations.inv_ornt_aff(orientation, image.shape[:3])


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
    sample = np.clip(scan[::2, ::2, ::2], low, high).ravel()
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
