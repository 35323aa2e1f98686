"""Take predictions on prepared scans back onto the grid of the original NIfTI: ``python -m data.restore``."""

import argparse
from pathlib import Path

from data.files.listing import counted, list_volumes
from data.files.names import MASK, PREDICTION_SUFFIX, SCAN
from data.prepare.restore import original_of, restore_file
from utils import cli
from utils.errors import UserError
from utils.files import read_json, require_writable
from utils.progress import progress


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
        original_of(path, prepared_dir, root, args.grid)
    require_writable(out_dir, "--out_dir")
    for path in progress(predictions, "Restoring predictions"):
        restore_file(path, prepared_dir, root, out_dir, args.grid)
    print(f"{counted(len(predictions), 'prediction')} restored in {out_dir}")


if __name__ == "__main__":
    cli.run(main, parse_args)
