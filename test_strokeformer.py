"""Segment 3D scans with a trained StrokeFormer and, where there are masks, score the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.settings import SCAN_DIM, GridSettings, Loading, brains_option, pattern_option, seed_option
from models.evaluation.settings import SEVERAL, AllOutputs, EnsembleRegions
from models.segmentation.settings import DecisionSettings, SlidingWindow, contrast_option, num_classes_option
from models.training.settings import device_option, precision_option
from utils import cli
from utils.errors import UserError
from utils.settings import option
from utils.validators import LIST, pathname


@dataclass(frozen=True)
class Settings:
    """Scans and networks."""

    seed: int = seed_option()
    scans: tuple[str, ...] = option(
        pathname, "scans or folders of scans (.npy, .nii, .nii.gz)", required=True, nargs="+"
    )
    masks: tuple[str, ...] | None = option(
        pathname, "their masks or folders of masks; without them nothing is scored", nargs="+"
    )
    scan_pattern: str | None = pattern_option("scan", "--scans or --masks")
    mask_pattern: str | None = pattern_option("mask", "--scans or --masks")
    ckpt_path: tuple[str, ...] = option(pathname, f"StrokeFormer: {SEVERAL}", required=True, nargs="+", metavar="PATH")
    model_name: str | None = option(str, "name in tables and folders; by default that of the checkpoint's run")
    num_classes: int = num_classes_option()
    contrast: str | None = contrast_option()
    brains_dir: tuple[str, ...] | None = brains_option()
    devices: int = device_option()
    precision: str = precision_option()
    regions: EnsembleRegions = EnsembleRegions()
    grid: GridSettings = GridSettings()
    loading: Loading = Loading()
    sliding: SlidingWindow = SlidingWindow()
    decision: DecisionSettings = DecisionSettings()
    outputs: AllOutputs = AllOutputs()


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    if settings.outputs.target_layers == LIST:
        return print_layers(settings)
    cohort, derivative, groups = open_scans(settings)  # first: a wrong path is refused before the heavy libraries load

    from data.batches.sources import scan_loader
    from models.checkpoints import run_name
    from models.evaluation.segmentation import evaluate_strokeformer, save_subgroups
    from report.pages import report_strokeformer
    from utils.provenance import save_run
    from utils.scores.intervals import print_scores

    settings = with_checkpoints(settings)
    name, outputs, seed = settings.model_name or run_name(settings.ckpt_path), settings.outputs, settings.seed
    folder = Path(outputs.scores_dir) / name
    pipeline, grid = load_pipeline(settings, [case.name for case in cohort.cases])
    cohort = cohort.on(grid, pipeline.segmenter.contrast, settings.ckpt_path[0], settings.contrast)
    cohort = replace(cohort, brains=folder / "brains")
    cohort.admit(settings.loading.num_workers)
    scans = scan_loader(cohort.cases, cohort.prepare, settings.loading.num_workers)
    keep = derivative and derivative.begin(sidecar(settings, name, pipeline.segmenter.decision))
    scores = evaluate_strokeformer(pipeline, cohort.cases, scans, name, outputs, seed, keep)
    if scores:
        save_subgroups(outputs, name, [name], groups, seed)
    save_run(folder, settings)
    print_scores(scores, folder)
    proposers = settings.regions.rpn_ckpt_path or ()
    print(f"The report is {report_strokeformer(name, cohort.cases, outputs, seed, settings.ckpt_path, proposers)}")


def open_scans(settings: Settings) -> tuple:
    """The cohort, whose headers have passed, the BIDS derivative that is asked for, and the groups of the scans."""
    from data.files.listing import Patterns
    from data.scans.cohort import pair_cases
    from data.scans.grid import grid_of
    from data.scans.groups import group_scans
    from data.scans.open import open_cohort
    from models.evaluation.derivatives import plan_derivative

    patterns = Patterns(settings.scan_pattern, settings.mask_pattern)
    cases = pair_cases(settings.scans, settings.masks, patterns=patterns)
    cohort = open_cohort(cases, grid=grid_of(settings.grid), brains_dir=settings.brains_dir)
    settings.outputs.require_writable()
    folder, metadata = settings.outputs.bids_derivatives, settings.outputs.metadata
    if metadata and not settings.masks:
        raise UserError("--metadata groups scores, which take --masks; give these, or leave it out")
    groups = group_scans(cohort.cases, metadata)
    return cohort, plan_derivative(folder, cohort.cases) if folder else None, groups


def with_checkpoints(settings: Settings) -> Settings:
    """With checkpoints in the place of folders of cross-validations, so that all that follows names the files."""
    from models.cross_validation.state import checkpoints_in

    ckpt_path, proposers = checkpoints_in(settings.ckpt_path), settings.regions.rpn_ckpt_path
    if settings.outputs.target_layers and len(ckpt_path) > 1:
        raise UserError("--target_layers explains one network; give one --ckpt_path, or leave it out for an ensemble")
    regions = replace(settings.regions, rpn_ckpt_path=proposers and checkpoints_in(proposers, "rpn_"))
    return replace(settings, ckpt_path=ckpt_path, regions=regions)


def load_pipeline(settings: Settings, names: Sequence[str]) -> tuple:
    """Both stages, and the grid that they want scans of these names on."""
    from models.checkpoints import grid_at_test, load_strokeformer, require_channels, require_classes
    from models.device import use_devices
    from models.evaluation.explanations import find_layers
    from models.pipeline import TwoStage
    from models.precision import use_precision
    from models.regions import region_source
    from utils.regions.region import UNKNOWN_EVIDENCE

    use_devices([settings.devices])
    use_precision(settings.precision)
    path, decision, grid = settings.ckpt_path[0], settings.decision, settings.grid
    model = load_strokeformer(settings.ckpt_path, decision.lesion_threshold, decision.smallest_lesion_cm3)
    require_classes(settings.num_classes, model.hparams["num_classes"], path)
    require_channels(grid.scan_dim[0], model, path)
    find_layers(model, settings.outputs.target_layers)  # so that a wrong one is refused now
    wanted = None if grid.scan_dim == SCAN_DIM else grid.scan_dim  # a network knows the grid that it learned on
    held = grid_at_test(model, wanted, grid.resize_to, path)
    roi_size, contrast = model.hparams["roi_size"], settings.contrast or model.contrast
    regions_of = region_source(settings.regions, names, roi_size, held.spacing_mm, contrast)
    if regions_of is None and any(model.decision.weights[-1:]):  # that of the evidence
        print(
            f"Components are chosen by the evidence of stage 1, too, which counts as {UNKNOWN_EVIDENCE:g} without it; "
            "give --rpn_ckpt_path, or --lesion_threshold to keep all components"
        )
    return TwoStage(model, regions_of, settings.sliding, settings.loading.batch_size), held


def sidecar(settings: Settings, name: str, decision) -> dict:
    """What a BIDS derivative says of how its files were made."""
    from models.evaluation.derivatives import prediction_settings

    regions, proposers = settings.regions.regions, settings.regions.rpn_ckpt_path
    files = {"Checkpoint": settings.ckpt_path, "RegionCheckpoint": proposers, "Regions": regions and (regions,)}
    return prediction_settings(name, files, decision, settings.sliding.flip_average)


def print_layers(settings: Settings) -> None:
    from models.checkpoints import load_model
    from models.evaluation.explanations import layers_of
    from models.segmentation.module import StrokeFormer

    print(layers_of(load_model(StrokeFormer, with_checkpoints(settings).ckpt_path[0])).table())


if __name__ == "__main__":
    cli.run(main, parse_args)
