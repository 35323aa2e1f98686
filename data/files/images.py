"""Paths, nibabel images and arrays as the files that the commands read."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import get_obj_dtype
from numpy.typing import ArrayLike

from data.files.listing import find_volumes, require_present
from data.files.names import extension_of, stem_of
from data.files.nifti import require_numbers, require_shape
from data.files.volumes import refusing
from utils.errors import UserError
from utils.files import atomic_path, expanded

Image = nib.spatialimages.SpatialImage
Volume = str | Path | Image | np.ndarray


@contextmanager
def files_of(affine: ArrayLike | None, **volumes: Volume) -> Iterator[tuple[Path, dict[str, Path]]]:
    """A temporary folder, and the files of volumes by their keywords.

    A `UserError` inside the block names an image or an array by its keyword.

    Args:
        affine: (4, 4) of all arrays among the volumes, from voxel (H, W, D) to mm; None where there are none.
    """
    files = {}
    with TemporaryDirectory() as folder:
        for name, volume in volumes.items():
            with refusing(name):
                files[name] = _file_of(volume, name, affine, Path(folder, name))
        if affine is not None and not any(isinstance(volume, np.ndarray) for volume in volumes.values()):
            raise UserError("affine is of arrays, and none is given; leave it out")
        try:
            yield Path(folder), files
        except UserError as error:
            why = str(error)
            for name, path in files.items():
                if not isinstance(volumes[name], str | Path):
                    why = why.replace(f"{name} {path}", name).replace(str(path), name)
            raise UserError(why) from None


def _file_of(volume: Volume, name: str, affine: ArrayLike | None, folder: Path) -> Path:
    """The file of a volume; what is none is written into `folder`, under its own name, which tells its contrast."""
    if isinstance(volume, str | Path):
        path = expanded(volume)
        if path.is_dir():
            raise UserError(f"{name} {volume} is a folder; give one file")
        require_present(find_volumes([path], name).values())
        return path
    if not isinstance(volume, Image | np.ndarray):
        given = type(volume).__name__
        raise UserError(f"{name} is of type {given}; give a file, a nibabel image, or an array and its affine")
    voxels: Any = volume
    if isinstance(volume, np.ndarray):
        place, header, stem = _matrix(affine, name), None, name
    elif file := _loaded_from(volume):
        return file
    else:
        voxels, place, header = volume.dataobj, volume.affine, volume.header
        stem = stem_of(volume.get_filename() or name)
    require_shape(voxels.shape, name)
    require_numbers(voxels.shape, get_obj_dtype(voxels), name)
    # As `read_volume` reads a file: an image gives the same mask as the file that it was loaded from.
    image = nib.Nifti1Image(np.asanyarray(voxels, dtype=np.float32), place, header, dtype=np.float32)
    with atomic_path(folder / f"{stem}.nii") as temporary:
        nib.save(image, temporary)
    return folder / f"{stem}.nii"


def _matrix(affine: ArrayLike | None, name: str) -> np.ndarray:
    """The affine of an array."""
    if affine is None:
        raise UserError(f"{name} is an array; give its affine too, the (4, 4) matrix from voxels (H, W, D) to mm")
    with suppress(TypeError, ValueError):
        matrix = np.asarray(affine, dtype=float)
        sound = matrix.shape == (4, 4) and np.isfinite(matrix).all() and (matrix[3] == (0, 0, 0, 1)).all()
        if sound and np.linalg.matrix_rank(matrix) == 4:
            return matrix
    raise UserError(
        "affine is no (4, 4) matrix with an inverse and 0, 0, 0, 1 in its last row; give that from voxels to mm"
    )


def _loaded_from(image: Image) -> Path | None:
    """The NIfTI file of an image that is as it was loaded: nibabel repairs headers and compares no checksum."""
    path = getattr(image.dataobj, "file_like", None)
    if not isinstance(path, str) or extension_of(path) is None or not Path(path).is_file():
        return None
    file = nib.load(path)
    same = isinstance(file, Image) and np.array_equal(file.affine, image.affine, equal_nan=True)
    return Path(path) if same and file.header == image.header else None
