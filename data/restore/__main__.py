"""Take predictions on prepared scans back onto the grid of the original NIfTI: ``python -m data.restore``."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files.listing import counted, find_volumes, require_present
from data.files.names import MASK, PREDICTION_SUFFIX, SCAN, stem_of
from data.files.space import Space, resample
from data.files.volumes import write_like
from data.prepare.cohort import read_record, record_path
from data.prepare.layouts import space_in
from data.scans.checks import read_binary
from utils import cli
from utils.errors import UserError
from utils.files import read_json, require_writable
from utils.progress import progress
from utils.settings import option
from utils.validators import pathname


@dataclass(frozen=True)
class Settings:
    """Predictions."""

    predictions: str = option(pathname, "folder of <scan>_prediction files", required=True)
    prepared_dir: str = option(pathname, "the --out_dir of python -m data.prepare", required=True)
    root: str | None = option(pathname, "folder of the original data set; by default that it was prepared from")
    grid: str = option(str, "original file whose grid is restored", SCAN, choices=(SCAN, MASK))
    out_dir: str = option(pathname, "folder for the restored .nii.gz", required=True)


parse_args = cli.parser_of(
    Settings(), "Write predictions on prepared scans back into the grid of the original NIfTI files."
)


def main(settings: Settings) -> None:
    prepared_dir, out_dir = Path(settings.prepared_dir), Path(settings.out_dir)
    root = Path(settings.root or read_json(prepared_dir / "run.json")["settings"]["root"])
    volumes = find_volumes([settings.predictions], "--predictions").values()
    require_present(volumes)
    predictions = [path for path in volumes if PREDICTION_SUFFIX in path.name]
    if not predictions:
        raise UserError(
            f"--predictions {settings.predictions} holds no <scan>{PREDICTION_SUFFIX} file; check the folder"
        )
    originals = {path: _original_of(path, prepared_dir, root, settings.grid) for path in predictions}
    require_writable(out_dir, "--out_dir")
    for path, (source, grid) in progress(originals.items(), "Restoring predictions"):
        mask = read_binary(path)
        if mask.shape != grid.shape:
            raise UserError(f"{path} has shape {mask.shape} (D, H, W), its prepared scan {grid.shape}; predict it anew")
        # To the voxel where preparing only cropped, padded and turned; background where it had cropped.
        restored = resample(mask[None], grid, space_in(source))[0]
        write_like(out_dir / f"{stem_of(path)}.nii.gz", restored.astype(np.uint8), source)
    print(f"{counted(len(predictions), 'prediction')} restored in {out_dir}")


def _original_of(path: Path, prepared_dir: Path, root: Path, grid: str) -> tuple[Path, Space]:
    """The original file of a prediction, `SCAN` or `MASK`, and the grid of the prepared scan."""
    record_file = record_path(stem_of(path).removesuffix(PREDICTION_SUFFIX), prepared_dir)
    if not record_file.is_file():
        raise UserError(f"{path} is no prediction of a scan in {prepared_dir}; check --predictions and --prepared_dir")
    record = read_record(record_file)
    source = root / record["mask" if grid == MASK else "source"]
    if not source.is_file():
        raise UserError(f"{source}, the original of {path.name}, does not exist; give the data set's folder as --root")
    return source, record["space"]


if __name__ == "__main__":
    cli.run(main, parse_args)
