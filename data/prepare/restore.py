"""Take predictions on prepared scans back onto the grid of the original NIfTI: ``python -m data.restore``.

`test_strokeformer.py` does that itself for the scan that it is given; this is for predictions on prepared scans.
"""

import argparse
from pathlib import Path

import numpy as np

from data.checks import read_binary
from data.listing import counted, list_volumes
from data.names import MASK, PREDICTION_SUFFIX, SCAN, stem_of
from data.prepare.records import read_record, record_path
from data.space import Space, resample
from data.volumes import read_header, write_like
from utils import cli
from utils.errors import UserError
from utils.files import read_json, require_writable
from utils.progress import progress


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
    source, prepared = _origin(path, prepared_dir, root, grid)
    mask = read_binary(path)
    if mask.shape != prepared.shape:
        raise UserError(f"{path} has shape {mask.shape} (D, H, W), its prepared scan {prepared.shape}; predict it anew")
    write_like(out_dir / f"{stem_of(path)}.nii.gz", restore_mask(mask, prepared, source).astype(np.uint8), source)


def _origin(path: Path, prepared_dir: Path, root: Path, grid: str) -> tuple[Path, Space]:
    record_file = record_path(stem_of(path).removesuffix(PREDICTION_SUFFIX), prepared_dir)
    if not record_file.is_file():
        raise UserError(f"{path} is no prediction of a scan in {prepared_dir}; check --predictions and --prepared_dir")
    record = read_record(record_file)
    source = root / (record.mask if grid == MASK else record.source)
    if not source.is_file():
        raise UserError(f"{source}, the original of {path.name}, does not exist; give the data set's folder as --root")
    return source, record.space


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.make_parser("Write predictions on prepared scans back into the grid of the original NIfTI files.")
    parser.add_argument("--predictions", required=True, help="folder of <scan>_prediction files")
    parser.add_argument("--prepared_dir", required=True, help="the --out_dir of python -m data.prepare")
    parser.add_argument("--root", default=None, help="where the original data set lies now; None for where it lay")
    parser.add_argument("--grid", choices=(SCAN, MASK), default=SCAN, help="original file whose grid it shall be")
    parser.add_argument("--out_dir", required=True, help="folder for the restored .nii.gz")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    prepared_dir, out_dir = Path(args.prepared_dir), Path(args.out_dir)
    root = Path(args.root or read_json(prepared_dir / "run.json")["settings"]["root"])
    predictions = [p for p in list_volumes([args.predictions], None, "--predictions") if PREDICTION_SUFFIX in p.name]
    if not predictions:
        raise UserError(f"--predictions {args.predictions} holds no <scan>{PREDICTION_SUFFIX} file; check the folder")
    for path in predictions:
        _origin(path, prepared_dir, root, args.grid)
    require_writable(out_dir, "--out_dir")
    for path in progress(predictions, "Restoring predictions"):
        restore_file(path, prepared_dir, root, out_dir, args.grid)
    print(f"{counted(len(predictions), 'prediction')} restored in {out_dir}")
