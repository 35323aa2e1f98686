"""Predictions on prepared scans, taken back onto the grid of the original NIfTI."""

from pathlib import Path

import numpy as np

from data.files.names import MASK, PREDICTION_SUFFIX, stem_of
from data.files.space import Space, resample
from data.files.volumes import write_like
from data.prepare.fit import space_in
from data.prepare.records import read_record, record_path
from data.scans.checks import read_binary
from utils.errors import UserError


def original_of(path: Path, prepared_dir: Path, root: Path, grid: str) -> tuple[Path, Space]:
    """The original file of a prediction, `SCAN` or `MASK`, and the grid of the prepared scan."""
    record_file = record_path(stem_of(path).removesuffix(PREDICTION_SUFFIX), prepared_dir)
    if not record_file.is_file():
        raise UserError(f"{path} is no prediction of a scan in {prepared_dir}; check --predictions and --prepared_dir")
    record = read_record(record_file)
    source = root / (record.mask if grid == MASK else record.source)
    if not source.is_file():
        raise UserError(f"{source}, the original of {path.name}, does not exist; give the data set's folder as --root")
    return source, record.space


def restore_file(path: Path, source: Path, prepared: Space, out_dir: Path) -> None:
    """Write one prediction as ``.nii.gz`` in the grid, orientation, both forms and the unit of its original file.

    To the voxel where preparing only cropped, padded and turned; background where it had cropped.
    """
    mask = read_binary(path)
    if mask.shape != prepared.shape:
        raise UserError(f"{path} has shape {mask.shape} (D, H, W), its prepared scan {prepared.shape}; predict it anew")
    restored = resample(mask[None], prepared, space_in(source))[0]
    write_like(out_dir / f"{stem_of(path)}.nii.gz", restored.astype(np.uint8), source)
