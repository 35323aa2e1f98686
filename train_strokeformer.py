"""Train the segmentation network (stage 2) on 3D scans, inside the regions of a JSON or of a trained RPN."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.settings import TrainingFolders, brains_option, extension_option
from models.rpn.settings import RegionSettings
from models.training.settings import StrokeFormerTraining
from utils import cli


@dataclass(frozen=True)
class Settings:
    """Data and training."""

    data: TrainingFolders = TrainingFolders()
    ext: str = extension_option()
    brains_dir: tuple[str, ...] | None = brains_option()
    regions: RegionSettings = RegionSettings()
    training: StrokeFormerTraining = StrokeFormerTraining()


def parse_args(argv: Sequence[str] | None = None) -> Settings:
    return cli.parse(Settings(), __doc__, argv)


def main(settings: Settings) -> None:
    cohort = open_scans(settings)  # first: a wrong path is refused before the heavy libraries load

    from models.precision import use_precision
    from models.regions import rpn_spacing
    from models.segmentation.module import StrokeFormer
    from models.training.devices import require_devices
    from models.training.strokeformer import train_strokeformer

    training = settings.training
    require_devices(training.logging.devices)
    use_precision(training.logging.precision)
    StrokeFormer(**vars(training.network))  # an argument that does not fit is refused now
    cohort = cohort.with_spacing(training.grid.spacing or rpn_spacing(settings.regions))
    cohort = cohort.cached_in(Path(training.run.default_root_dir) / "cache", "--default_root_dir")
    training = replace(training, grid=replace(training.grid, spacing=cohort.grid.spacing_mm))
    regions, inputs = propose(settings, cohort)
    (train, val), name = cohort.sides, training.run.model_prefix
    print(f"Best checkpoint: {train_strokeformer(training, train, val, regions, cohort, name, inputs)}")


def open_scans(settings: Settings):
    from data.scans.cohort import print_shared_subjects, refuse_twins
    from data.scans.grid import grid_of
    from data.scans.open import Source, open_cohort

    folders = settings.data
    train = Source([folders.train_scans], [folders.train_masks], ("--train_scans", "--train_masks"), settings.ext)
    val = Source([folders.val_scans], [folders.val_masks], ("--val_scans", "--val_masks"), settings.ext)
    cohort = open_cohort(train, val, grid=grid_of(settings.training.grid), brains_dir=settings.brains_dir)
    refuse_twins(*cohort.sides)
    print_shared_subjects(*([case.subject for case in side] for side in cohort.sides))
    return cohort


def propose(settings: Settings, cohort) -> tuple:
    """The regions of all scans, None for whole volumes, and what the network learns from, once both are admitted."""
    from data.batches.datamodules import scan_loader
    from models.regions import collect_regions, region_source

    workers, roi_size = settings.training.loading.num_workers, settings.training.network.roi_size
    names = [case.name for case in cohort.cases]
    regions_of = region_source(settings.regions, names, roi_size, cohort.grid.spacing_mm)
    facts = cohort.admit(workers)
    inputs = find_inputs(settings, cohort, facts)
    scans = scan_loader(cohort.cases, cohort.prepare, workers)
    return None if regions_of is None else collect_regions(regions_of, scans), inputs


def find_inputs(settings: Settings, cohort, facts: Mapping) -> dict[str, str]:
    """Digests of scans, masks and what proposes the regions; refuses a training begun with others before the work."""
    from data.scans.fingerprints import fingerprint
    from models.checkpoints import paths_of
    from models.training.runs import inputs_of, is_trained, run_folder
    from utils.provenance import require_inputs

    run, regions = settings.training.run, settings.regions
    folder, proposer = run_folder(run, run.model_prefix), regions.regions or regions.rpn_ckpt_path
    files = [Path(path) for path in paths_of(proposer)] if proposer else []
    store = folder / "fingerprints.json"
    digest = fingerprint({"proposer": files}, store)["proposer"] if files else None
    train, val = cohort.sides
    inputs = inputs_of(train, val, {case.name: facts[case].digest for case in facts}, digest)
    if is_trained(folder):
        require_inputs(folder, inputs)
    return inputs


if __name__ == "__main__":
    cli.run(main, parse_args)
