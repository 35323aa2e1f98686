"""Evaluate a trained region proposal network (stage 1) on 2D slices; ``python -m data.slices`` makes them."""

from dataclasses import dataclass
from pathlib import Path

from data.settings import Loading, resize_option, seed_option
from models.evaluation.settings import RPNOutputs
from models.rpn.settings import score_threshold_option
from models.segmentation.settings import contrast_option, num_classes_option, roi_size_option
from models.training.settings import device_option, precision_option
from utils import cli
from utils.settings import option
from utils.validators import pathname


@dataclass(frozen=True)
class Settings:
    """Slices and network."""

    seed: int = seed_option()
    scans: str = option(pathname, "folder of 2D scan slices", required=True)
    masks: str = option(pathname, "folder of 2D masks", required=True)
    ckpt_path: str = option(pathname, "RPN checkpoint", required=True)
    model_name: str | None = option(str, "name in tables and folders; by default that of the checkpoint's run")
    resize_to: tuple[int, int] | None = resize_option()
    num_classes: int = num_classes_option()
    contrast: str | None = contrast_option()
    roi_size: tuple[int, int, int] = roi_size_option()
    score_threshold: float | None = score_threshold_option()
    devices: int = device_option()
    precision: str = precision_option()
    loading: Loading = Loading(batch_size=32)
    outputs: RPNOutputs = RPNOutputs(scores_file="rpn_scores.csv")


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    from data.batches.slices import check_slices, read_slice_table

    loading = settings.loading
    # First: a wrong path is refused before the heavy libraries load.
    table = read_slice_table(settings.scans, settings.masks)
    settings.outputs.require_writable()
    check_slices(table, settings.resize_to, loading.num_workers)

    from data.batches.sources import stacked_scans
    from models.checkpoints import run_name
    from models.evaluation.proposals import evaluate_rpn
    from report.pages import report_rpn
    from utils.provenance import save_run
    from utils.scores.intervals import print_scores

    model, outputs, seed = load_network(settings, table), settings.outputs, settings.seed
    name = settings.model_name or run_name(settings.ckpt_path)
    scans = stacked_scans(table, loading.num_workers, settings.resize_to)
    scores = evaluate_rpn(model, scans, name, outputs, seed, settings.roi_size, loading.batch_size)
    save_run(Path(outputs.scores_dir) / name, settings)
    print_scores(scores, Path(outputs.scores_dir) / name)
    print(f"The report is {report_rpn(name, len(scans), outputs, seed, settings.ckpt_path)}")


def load_network(settings: Settings, table):
    """The RPN; refuses slices (rows of `data.batches.cutting.COLUMNS`) that it was not made for."""
    from data.batches.slices import grid_of_slices
    from data.scans.contrast import require_contrast
    from models.checkpoints import load_rpn, require_channels, require_classes, require_spacing
    from models.device import use_devices
    from models.precision import use_precision

    use_devices([settings.devices])
    use_precision(settings.precision)
    path, model = settings.ckpt_path, load_rpn(settings.ckpt_path, settings.score_threshold)
    grid = grid_of_slices(table)
    require_classes(settings.num_classes, 2, path)
    require_channels(grid.scan_dim[0], model, path)
    require_contrast(table.volume.unique(), model.contrast, path, settings.contrast)
    if not settings.resize_to:
        require_spacing(grid.spacing_mm, model, path, "cut the slices with --spacing")
    return model


if __name__ == "__main__":
    cli.run(main, parse_args)
