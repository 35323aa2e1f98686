"""Take predictions on prepared scans back onto the grid of the original NIfTI: ``python -m data.restore``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files.listing import counted, find_volumes, require_present, require_some
from data.files.names import MASK, PREDICTION_SUFFIX, SCAN
from data.prepare.restore import original_of, restore_file
from utils import cli
from utils.errors import UserError
from utils.files import read_json, require_writable
from utils.progress import progress
from utils.settings import option


@dataclass(frozen=True)
class Settings:
    """Predictions."""

    predictions: str = option(str, "folder of <scan>_prediction files", required=True)
    prepared_dir: str = option(str, "the --out_dir of python -m data.prepare", required=True)
    root: str | None = option(str, "folder of the original data set; None for that it was prepared from")
    grid: str = option(str, "original file whose grid is restored", SCAN, choices=(SCAN, MASK))
    out_dir: str = option(str, "folder for the restored .nii.gz", required=True)


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    what = "Write predictions on prepared scans back into the grid of the original NIfTI files."
    return cli.parse(Settings(), what, argv)


def main(settings: Settings) -> None:
    prepared_dir, out_dir = Path(settings.prepared_dir), Path(settings.out_dir)
    root = Path(settings.root or read_json(prepared_dir / "run.json")["settings"]["root"])
    volumes = find_volumes([settings.predictions], "--predictions").values()
    require_some(volumes, [settings.predictions], None, "--predictions")
    require_present(volumes)
    predictions = [path for path in volumes if PREDICTION_SUFFIX in path.name]
    if not predictions:
        raise UserError(
            f"--predictions {settings.predictions} holds no <scan>{PREDICTION_SUFFIX} file; check the folder"
        )
    originals = [original_of(path, prepared_dir, root, settings.grid) for path in predictions]
    require_writable(out_dir, "--out_dir")
    for path, original in progress(list(zip(predictions, originals, strict=True)), "Restoring predictions"):
        restore_file(path, *original, out_dir)
    print(f"{counted(len(predictions), 'prediction')} restored in {out_dir}")


if __name__ == "__main__":
    cli.run(main, parse_args)
