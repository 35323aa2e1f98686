"""Take predictions on prepared scans back onto the grid of the original NIfTI: ``python -m data.restore``.

`test_strokeformer.py` does that itself for the scan that it is given; this is for predictions on prepared scans.
"""

from pathlib import Path

import numpy as np

from data.files.names import MASK, PREDICTION_SUFFIX, SCAN, stem_of
from data.files.space import Space, resample
from data.files.volumes import read_header, write_like
from data.prepare.records import read_record, record_path
from data.scans.checks import read_binary
from utils.errors import UserError


def restore_mask(mask: np.ndarray, prepared: Space, source: Path) -> np.ndarray:
    """A (D, H, W) bool mask of the prepared grid on the grid of an original file.

    To the voxel where preparing only cropped, padded and turned; background where it had cropped.
    """
    return resample(mask[None], prepared, read_header(source).space)[0]


def restore_file(path: Path, prepared_dir: Path, root: Path, out_dir: Path, grid: str = SCAN) -> None:
    """Write one prediction as ``.nii.gz`` in the grid, orientation, both forms and the unit of an original file.

    Args:
        grid: of which file: `SCAN` or `MASK`.
    """
    source, prepared = original_of(path, prepared_dir, root, grid)
    mask = read_binary(path)
    if mask.shape != prepared.shape:
        raise UserError(f"{path} has shape {mask.shape} (D, H, W), its prepared scan {prepared.shape}; predict it anew")
    write_like(out_dir / f"{stem_of(path)}.nii.gz", restore_mask(mask, prepared, source).astype(np.uint8), source)


def original_of(path: Path, prepared_dir: Path, root: Path, grid: str) -> tuple[Path, Space]:
    record_file = record_path(stem_of(path).removesuffix(PREDICTION_SUFFIX), prepared_dir)
    if not record_file.is_file():
        raise UserError(f"{path} is no prediction of a scan in {prepared_dir}; check --predictions and --prepared_dir")
    record = read_record(record_file)
    source = root / (record.mask if grid == MASK else record.source)
    if not source.is_file():
        raise UserError(f"{source}, the original of {path.name}, does not exist; give the data set's folder as --root")
    return source, record.space
