"""NIfTI files: opened only where their header is sound, and read to their checksum."""

import gzip
import io
import math
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data.files.names import extension_of, stem_of
from utils.errors import UserError

MAX_BYTES = 2**30  # of a volume on disk, uncompressed: a whole head at 0.5 mm has half of that
GZIP_MAGIC = b"\x1f\x8b"
GZIP_RATIO = 1032  # deflate cannot compress more, so a header that claims more than that lies
BESIDE_VOXELS = 2**24  # bytes of a NIfTI file that are no voxels: its header, extensions, a tail
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre and micron of xyzt_units; 2 is mm, and 0, unknown, is meant as mm
SAME_SIZE = 0.01  # the share by which two statements of a voxel's size may differ: single precision, rounding
SHEAR = 0.05  # the share of a voxel's volume that is lost where its edges are not at right angles, at most
FORMS_AGREE = 0.7  # cosine: a voxel axis of the qform points within 45 degrees of where that of the sform does
VOXEL_MM = (0.01, 100.0)  # a voxel of MRI is in between: microscopes see finer, and a head would be two voxels


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Size of a voxel in mm along (D, H, W)."""
    h, w, d = (float(size) for size in nib.affines.voxel_sizes(affine))
    return d, h, w


def affine_of(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The (4, 4) affine of voxels of that size along (D, H, W), the first of them at the origin."""
    d, h, w = spacing_mm
    return np.diag([h, w, d, 1.0])


def size_text(sizes_mm: Iterable[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes_mm)


@dataclass(frozen=True)
class Nifti:
    """An open NIfTI file, of version 1 or 2, whose voxels are not read yet."""

    image: nib.Nifti1Image  # of nibabel, which fixes some fields of the header
    header: nib.Nifti1Header  # as it is in the file, to the bit
    orientation: np.ndarray  # of nibabel, turns the voxels to RAS
    ras_affine: np.ndarray  # (4, 4) from a voxel turned to RAS to mm
    stream: io.BufferedIOBase  # the uncompressed file


@contextmanager
def open_nifti(path):
    """A `Nifti` whose header has been found sound, open inside the block."""
    with _open_stream(path) as stream:
        kind = _nifti_kind(stream)
        if kind is None:
            raise UserError(f"{path} is no NIfTI volume; convert it, e.g. with nibabel or dcm2niix")
        header = kind.header_class(stream.read(kind.header_class.sizeof_hdr), check=False)
        stream.seek(0)
        image = kind.from_stream(stream)
        require_shape(image.shape, path)
        require_numbers(image.shape, image.get_data_dtype(), path)
        claimed = math.prod(image.shape) * image.get_data_dtype().itemsize
        if claimed > Path(path).stat().st_size * (GZIP_RATIO if extension_of(path) == ".nii.gz" else 1):
            raise UserError(f"{path} is shorter than its header says; copy or download it again")
        mm = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
        affine = np.diag([mm, mm, mm, 1]) @ image.affine
        _require_place(header, affine, mm, path)
        orientation = nib.io_orientation(affine)
        ras_affine = affine @ nib.orientations.inv_ornt_aff(orientation, image.shape[:3])
        yield Nifti(image, header, orientation, ras_affine, stream)


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


def require_checksum(stream: io.BufferedIOBase, path) -> None:
    """Read on to the checksum of a ``.nii.gz``, which gzip compares, but not more than a volume may have."""
    while isinstance(stream, gzip.GzipFile) and stream.read(2**20):
        if stream.tell() > MAX_BYTES + BESIDE_VOXELS:
            raise UserError(f"{path} holds more than {MAX_BYTES >> 20} MiB; copy or download it again")


def _nifti_kind(stream: io.BufferedIOBase) -> type[nib.Nifti1Image] | None:
    """Which NIfTI the file begins as, if any; the stream is wound back."""
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    stream.seek(0)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    return next((kind for kind in kinds if kind.header_class.may_contain_header(start)), None)


def require_shape(shape: tuple[int, ...], path) -> None:
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise UserError(f"{path} has shape {shape}; a volume is (C, H, W, D) in .npy or (H, W, D) in NIfTI")


def require_numbers(shape: tuple[int, ...], dtype: np.dtype, path) -> None:
    if dtype.kind not in "biuf":
        raise UserError(f"{path} holds values of type {dtype}; a volume holds real numbers")
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise UserError(f"{path} has shape {shape} and more than {MAX_BYTES >> 20} MiB; crop or resample it")


def _require_place(header: nib.Nifti1Header, affine: np.ndarray, mm: float, path) -> None:
    """Refuse an affine (mm) that is flat, not finite, sheared, of voxels that no scanner makes, or of another size than
    pixdim, and a header that places nothing, or twice.

    Readers differ in whether they take the voxel size from the affine or from pixdim, and the place from which form.
    """
    sizes = nib.affines.voxel_sizes(affine)
    if not np.isfinite(affine).all() or np.isnan(nib.io_orientation(affine)).any() or not min(sizes) > 0:
        raise UserError(f"{path} has an affine that places no volume; fix its header")
    if not is_voxel_size(sizes):
        stated = size_text(sizes)
        raise UserError(f"{path} says its voxels are {stated} mm, which is impossible; correct its header or its unit")
    pixdim = mm * np.abs(header["pixdim"][1:4].astype(float))
    by_sform = header["sform_code"] > 0
    unset = (pixdim == 0) & bool(by_sform and header["qform_code"] <= 0)  # no one's statement: nothing uses it
    if not (unset | (np.abs(pixdim - sizes) <= SAME_SIZE * sizes)).all():
        raise UserError(
            f"{path} says its voxels are {size_text(sizes)} mm ({'sform' if by_sform else 'affine'}) and "
            f"{size_text(pixdim)} mm (pixdim); correct its header, e.g. with nibabel"
        )
    if abs(np.linalg.det(affine)) < (1 - SHEAR) * np.prod(sizes):
        raise UserError(f"{path} has a sheared affine, whose voxels are no boxes; resample it to a straight one")
    if not (by_sform or header["qform_code"] > 0):
        raise UserError(f"{path} has no affine (qform_code and sform_code are 0): left may be right; set its sform")
    if by_sform and header["qform_code"] > 0 and _forms_cosine(header) < FORMS_AGREE:
        raise UserError(f"{path} has an sform and a qform of different orientations; set the wrong one's code to 0")


def _forms_cosine(header: nib.Nifti1Header) -> float:
    """Of the voxel axes of both forms, that of the largest angle between two; 1 where no reader can use the qform."""
    try:
        qform = header.get_qform()
    except (ValueError, nib.spatialimages.HeaderDataError):  # a quaternion beyond 1, by rounding
        return 1.0
    one, two = (form[:3, :3] / nib.affines.voxel_sizes(form) for form in (header.get_sform(), qform))
    return float((one * two).sum(0).min())


def is_voxel_size(sizes_mm) -> bool:
    """Whether three numbers can be the size of an MRI voxel in mm."""
    return len(sizes_mm) == 3 and all(VOXEL_MM[0] <= size <= VOXEL_MM[1] for size in sizes_mm)
