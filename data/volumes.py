"""3D volumes: read, write, head mask and normalisation.

On disk a volume is ``.npy`` (C, H, W, D) or NIfTI, which is read in its closest RAS orientation as (H, W, D).
In memory it is (C, D, H, W): H left-right, W posterior-anterior, D inferior-superior.
"""

import gzip
import io
import math
import zlib
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
MAX_BYTES = 2**30  # of a volume on disk, uncompressed: a whole head at 0.5 mm has half of that
GZIP_MAGIC = b"\x1f\x8b"
GZIP_RATIO = 1032  # deflate cannot compress more, so a header that claims more than that lies
BESIDE_VOXELS = 2**24  # bytes of a NIfTI file that are no voxels: its header, extensions, a tail
CHUNK = 2**20
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre and micron of xyzt_units; 2 is mm, and 0, unknown, is meant as mm
SAME_SIZE = 0.01  # the share by which two statements of a voxel's size may differ: single precision, rounding
VOXEL_MM = (0.01, 100.0)  # a voxel of MRI is in between: microscopes see finer, and a head would be two voxels
# Of a NIfTI header: where the volume lies and in which unit.
PLACE_FIELDS = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units")  # fmt: skip

# The head begins at this share of the way from air to tissue. On ATLAS's raw T1w, where air is 0 and the median
# tissue about 60, that is the reference threshold of 8.0.
HEAD_SHARE = 0.13
OTSU_PERCENTILES = (0.5, 99.5)  # intensities outside are clipped: a spike would leave Otsu's histogram one bin
STRAY, STRAY_SHARE = 3, 0.001  # voxels or share of a plane: padding is padding though so few are something else
PADDED_CORNERS = 4  # of 8: padding on one side fills four corners, about a rotated field all
BLEND = 2  # voxels next to padding that interpolation may have mixed with it
# What borders the padding is air if it is uniform: if these percentiles of it span less than this share of the step
# to tissue. Measured: 0.10 in air of SNR 20, 0.17 of SNR 10; stripped, 0.6 in ADC, 5 and more in T1w, DWI and FLAIR.
RIM_PERCENTILES, UNIFORM = (1, 75), 0.2  # above the 75th there may be the neck
BRIGHT = 90  # intensities above this percentile may be a lesion's, and are not asked what tissue is
MOST = 0.95  # of the tissue is brighter than a dark background; published stripped scans have 0.1 % below theirs

HEAD_PERCENTILES = (1, 99)  # intensities outside are clipped: vessels, fat and spikes say nothing of lesions


@dataclass(frozen=True)
class Header:
    """What a volume's file says of itself.

    shape: (C, D, H, W).
    affine: (4, 4) from voxel (H, W, D) to mm in RAS, whatever the unit of the file; None for ``.npy``, which does
        not tell.
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
            it is larger than it is, is not 3D with a channel, fails its checksum (``.nii.gz``), or has a header that
            contradicts itself.
    """
    with refusing(path):
        if extension_of(path) == ".npy":
            array, affine = _open_npy(path), None
        else:
            with _open_nifti(path) as nifti:
                array = np.asarray(nifti.image.dataobj, dtype=np.float32)
                _require_checksum(nifti.stream, path)
            affine, array = nifti.ras_affine, nib.apply_orientation(array, nifti.orientation)
            array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
        return Volume(np.ascontiguousarray(array.transpose(0, 3, 1, 2), dtype=dtype), affine)


def read_header(path: Path | str) -> Header:
    """Shape and place of a volume; no voxel is read, no checksum compared. Raises as `read_volume` does otherwise."""
    with refusing(path):
        if extension_of(path) == ".npy":
            c, h, w, d = _open_npy(path).shape
            return Header((c, d, h, w), None)
        with _open_nifti(path) as nifti:
            h, w, d = np.take(nifti.image.shape, np.argsort(nifti.orientation[:, 0])).tolist()
            return Header((math.prod(nifti.image.shape[3:]), d, h, w), nifti.ras_affine)


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


def _require_shape(shape: tuple[int, ...], path) -> None:
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(f"{path} has shape {shape}; a volume is (C, H, W, D) in .npy or (H, W, D) in NIfTI")


def _require_numbers(shape: tuple[int, ...], dtype: np.dtype, path) -> None:
    if dtype.kind not in "biuf":
        raise UserError(f"{path} holds values of type {dtype}; a volume holds real numbers")
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise UserError(f"{path} has shape {shape} and more than {MAX_BYTES >> 20} MiB; crop or resample it")


# --- NIfTI ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Nifti:
    """An open NIfTI file, of version 1 or 2, whose voxels are not read yet.

    image: as nibabel has it, which mends some fields of the header.
    header: as it is in the file, to the bit.
    affine: (4, 4) from voxel in the order of the file to mm.
    stream: the uncompressed file.
    """

    image: nib.Nifti1Image
    header: nib.Nifti1Header
    affine: np.ndarray
    stream: io.BufferedIOBase

    @property
    def orientation(self) -> np.ndarray:
        """The nibabel orientation that turns the voxels to RAS."""
        return nib.io_orientation(self.affine)

    @property
    def ras_affine(self) -> np.ndarray:
        return self.affine @ nib.orientations.inv_ornt_aff(self.orientation, self.image.shape[:3])


@contextmanager
def _open_nifti(path):
    """A `_Nifti` whose header has been found sound, open inside the block."""
    with _open_stream(path) as stream:
        kind = _nifti_kind(stream)
        if kind is None:
            raise UserError(f"{path} is no NIfTI volume; convert it, e.g. with nibabel or dcm2niix")
        header = kind.header_class(stream.read(kind.header_class.sizeof_hdr), check=False)
        stream.seek(0)
        image = kind.from_stream(stream)
        _require_shape(image.shape, path)
        _require_numbers(image.shape, image.get_data_dtype(), path)
        _require_length(image, path)
        mm = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
        affine = np.diag([mm, mm, mm, 1]) @ image.affine
        _require_place(affine, path)
        _require_one_size(header, affine, mm, path)
        yield _Nifti(image, header, affine, stream)


@contextmanager
def _open_stream(path):
    """The uncompressed content of a NIfTI file; what is damaged or misnamed is refused."""
    with Path(path).open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if extension_of(path) != ".nii.gz":
            if compressed:
                raise UserError(f"{path} is compressed; rename it to {Path(path).name}.gz")
            yield file
        elif compressed:
            try:
                yield gzip.GzipFile(fileobj=file)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserError(f"{path} is damaged and cannot be read ({error}); copy or download it again") from None
        elif _nifti_kind(file):
            raise UserError(f"{path} cannot be read: it is not compressed; rename it to {stem_of(path)}.nii")
        else:
            raise UserError(f"{path} cannot be read: it is no gzip file; copy or download it again")


def _require_checksum(stream: io.BufferedIOBase, path) -> None:
    """Read on to the checksum of a ``.nii.gz``, which stands behind all that is compressed, and which gzip compares.

    What stands behind the voxels is not kept, and not more of it read than a volume may have: it may be a bomb.
    """
    while isinstance(stream, gzip.GzipFile) and stream.read(CHUNK):
        if stream.tell() > MAX_BYTES + BESIDE_VOXELS:
            raise UserError(f"{path} holds more than {MAX_BYTES >> 20} MiB; copy or download it again")


def _nifti_kind(stream: io.BufferedIOBase) -> type[nib.Nifti1Image] | None:
    """Which NIfTI the file begins as, if any; the stream is wound back."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    stream.seek(0)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    return next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)


def _require_length(image: nib.Nifti1Image, path) -> None:
    claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
    if claimed > Path(path).stat().st_size * (GZIP_RATIO if extension_of(path) == ".nii.gz" else 1):
        raise UserError(f"{path} is shorter than its header says; copy or download it again")


def _require_place(affine: np.ndarray, path) -> None:
    """Refuse an affine (mm) that is flat, not finite, or of voxels that no scanner makes."""
    if not np.isfinite(affine).all() or np.isnan(nib.io_orientation(affine)).any() or not min(spacing_of(affine)) > 0:
        raise UserError(f"{path} has an affine that places no volume; mend its header")
    if not is_voxel_size(spacing_of(affine)):
        sizes = _sizes_text(nib.affines.voxel_sizes(affine))
        raise UserError(f"{path} says its voxels are {sizes} mm, which is impossible; correct its header or its unit")


def _require_one_size(header: nib.Nifti1Header, affine: np.ndarray, mm: float, path) -> None:
    """Refuse a header of two voxel sizes: that of the `affine` (mm) and pixdim, by the standard the voxel's size.

    Readers differ in which of them they use, and a volume in cm3 can be 27 times too small.
    """
    pixdim, sizes = mm * np.abs(header["pixdim"][1:4].astype(float)), nib.affines.voxel_sizes(affine)
    by_sform = header["sform_code"] > 0
    unset = (pixdim == 0) & bool(by_sform and header["qform_code"] <= 0)  # no one's statement: nothing uses it
    if not (unset | (np.abs(pixdim - sizes) <= SAME_SIZE * sizes)).all():
        raise UserError(
            f"{path} says its voxels are {_sizes_text(sizes)} mm ({'sform' if by_sform else 'affine'}) and "
            f"{_sizes_text(pixdim)} mm (pixdim); correct its header, e.g. with nibabel"
        )


def is_voxel_size(sizes_mm) -> bool:
    """Whether three numbers can be the size of an MRI voxel in mm."""
    return len(sizes_mm) == 3 and all(VOXEL_MM[0] <= size <= VOXEL_MM[1] for size in sizes_mm)


def _sizes_text(sizes) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


# --- writing -------------------------------------------------------------------------------------------


def write_volume(path: Path | str, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Write a (C, D, H, W) array: `.npy` as (C, H, W, D), NIfTI as (H, W, D[, C]) with `affine` (RAS, mm)."""
    on_disk = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    with atomic_path(path) as temporary:
        if extension_of(path) == ".npy":
            np.save(temporary, on_disk)
        else:
            on_disk = on_disk[0] if len(on_disk) == 1 else np.moveaxis(on_disk, 0, -1)
            nib.save(_placed_image(on_disk, np.eye(4) if affine is None else affine), temporary)


def _placed_image(on_disk: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A NIfTI image that tells its affine (mm) in both forms, since readers differ in which they prefer."""
    image = nib.Nifti1Image(on_disk, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_sform(affine, 1)
    try:
        image.header.set_qform(affine, 1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a quaternion holds no shear: the sform tells alone
        image.header["qform_code"] = 0
    return image


def write_like(path: Path | str, array: np.ndarray, scan_path: Path | str) -> None:
    """Write a (D, H, W) mask in the file format, grid and orientation of the scan it belongs to.

    Of a NIfTI scan's header the mask takes what places it, to the bit: both forms, their codes and the unit. It takes
    nothing else, which may be about the intensities or about the patient.
    """
    if extension_of(scan_path) == ".npy":
        return write_volume(path, array[None])
    with refusing(scan_path), _open_nifti(scan_path) as scan:
        header = scan.header
    to_scan = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), scan.orientation)
    on_disk = nib.orientations.apply_orientation(array.transpose(1, 2, 0), to_scan)
    image = type(scan.image)(on_disk.astype(np.uint8), None)
    for field in PLACE_FIELDS:
        image.header[field] = header[field]
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


# --- head ----------------------------------------------------------------------------------------------


def head_mask(scan: np.ndarray) -> np.ndarray:
    """Separate the head from air, whatever the intensity scale and offset, a few stray voxels, or constant padding.

    The head begins `HEAD_SHARE` of the way from air to tissue, so that dark CSF and lesions at the brain's rim belong
    to it. The largest component is kept, holes are filled slice by slice (a lesion is no hole in the head).

    Args:
        scan: (D, H, W), finite, any units.

    Returns:
        (D, H, W) bool; all False for a constant scan.
    """
    head = np.zeros(scan.shape, bool)
    box = _field_of_view(scan)
    field = scan[box]
    if field.size and field.min() < field.max():
        head[box] = _fill_slices(_largest_component(_open(_not_air(field))))
    elif field.size < scan.size:  # a block of one value amid another
        head[box] = True
    return head


def _field_of_view(scan: np.ndarray) -> tuple[slice, slice, slice]:
    """The box of a (D, H, W) scan within the planes of padding, each side's of one value."""
    values = [[np.median(scan.take(end, axis)) for end in (0, -1)] for axis in range(3)]
    box, before = [slice(0, size) for size in scan.shape], None
    while box != before:  # a plane may prove to be padding once others are cut off it
        before = list(box)
        for axis, (low, high) in enumerate(values):
            planes = np.moveaxis(scan[tuple(box)], axis, 0)
            start = box[axis].start + _count_leading(planes, low)
            box[axis] = slice(start, max(box[axis].stop - _count_leading(planes[::-1], high), start))
    return tuple(box)


def _count_leading(planes: np.ndarray, value: float) -> int:
    """How many of the first of (N, A, B) planes hold nothing but `value`, up to a few stray voxels."""
    size = math.prod(planes.shape[1:])
    few = min(max(STRAY, STRAY_SHARE * size), size / 100)
    return next((i for i, plane in enumerate(planes) if np.count_nonzero(plane != value) > few), len(planes))


def _not_air(field: np.ndarray) -> np.ndarray:
    """Voxels of a (D, H, W) field of view that are neither air nor padding, by their intensities; bool."""
    constant, sample = _corner_value(field), field[::2, ::2, ::2]
    outside = _grown(_at_border(sample == constant))
    inside, rim = sample[~outside], sample[_grown(outside, 1) & ~outside]
    if not rim.size:  # noisy air up to the corners
        return field > _head_threshold(sample)
    if _is_air(rim, inside):  # the constant is padding
        threshold = _head_threshold(inside)
        head = field > threshold
        return head & ~_grown(_at_border(field == constant)) if constant > threshold else head
    # The constant is the air of a scan that was stripped or masked.
    if np.mean(inside > constant) > MOST:
        # Cut off above, or a large bright lesion would be Otsu's one class and the brain the other.
        return field > _head_threshold(np.minimum(sample, np.percentile(inside, BRIGHT)))
    return ~_at_border(field == constant)  # tissue is darker, as where a brain was scaled to a mean of 0


def _corner_value(field: np.ndarray) -> float:
    """The value that at least `PADDED_CORNERS` of the 8 corners share; NaN, which equals no voxel, without one."""
    values, counts = np.unique(field[np.ix_(*[(0, -1)] * 3)], return_counts=True)
    return values[counts.argmax()] if counts.max() >= PADDED_CORNERS else np.nan


def _at_border(mask: np.ndarray) -> np.ndarray:
    """The components of a mask that touch the border of the volume."""
    labels, n = ndimage.label(mask)
    touching = np.zeros(n + 1, bool)
    for axis in range(mask.ndim):
        touching[labels.take((0, -1), axis)] = True
    touching[0] = False
    return touching[labels]


def _grown(mask: np.ndarray, voxels: int = BLEND) -> np.ndarray:
    return ndimage.binary_dilation(mask, iterations=voxels)


def _head_threshold(intensities: np.ndarray) -> float:
    """Where the head begins, by Otsu's threshold and the medians of air below and tissue above it."""
    air, tissue = _otsu_medians(intensities)
    return air + HEAD_SHARE * (tissue - air)


def _is_air(rim: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the intensities `rim`, next to the padding, are air: uniform, and darker than the tissue `inside`."""
    _, tissue = _otsu_medians(np.minimum(inside, np.percentile(inside, BRIGHT)))
    return np.diff(np.percentile(rim, RIM_PERCENTILES)).item() < UNIFORM * (tissue - np.median(rim))


def _otsu_medians(intensities: np.ndarray) -> tuple[float, float]:
    """The medians of the darker and the brighter of Otsu's two classes."""
    low, high = np.percentile(intensities, OTSU_PERCENTILES)
    if not low < high:
        return float(low), float(high)
    clipped = np.clip(intensities, low, high).ravel()
    otsu = threshold_otsu(clipped)
    return float(np.median(clipped[clipped <= otsu])), float(np.median(clipped[clipped > otsu]))


def _open(mask: np.ndarray) -> np.ndarray:
    """Without specks and threads; the border of the volume wears nothing off, nor does a single slice vanish."""
    return ndimage.binary_dilation(ndimage.binary_erosion(mask, border_value=1))


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
