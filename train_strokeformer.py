"""Train the segmentation network (stage 2) on 3D scans, inside the regions of a JSON or of a trained RPN."""

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


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    from data.scans.cohort import pair_cases, print_shared_subjects, refuse_twins
    from data.scans.grid import grid_of
    from data.scans.open import open_cohort

    folders, training, name = settings.data, settings.training, settings.training.run.model_prefix
    training.logging.require_wandb_mode()  # first: wrong arguments and paths are refused before heavy libraries load
    train = pair_cases([folders.train_scans], [folders.train_masks], settings.ext, ("--train_scans", "--train_masks"))
    val = pair_cases([folders.val_scans], [folders.val_masks], settings.ext, ("--val_scans", "--val_masks"))
    cohort = open_cohort(train, val, grid=grid_of(training.grid), brains_dir=settings.brains_dir)
    train, val = cohort.sides  # with their brain masks
    refuse_twins(train, val)
    print_shared_subjects(*([case.subject for case in side] for side in cohort.sides))

    from models.regions import rpn_spacing
    from models.segmentation.module import StrokeFormer
    from models.training.devices import use_machine
    from models.training.starts import start_from
    from models.training.strokeformer import train_strokeformer

    use_machine(training.logging, training.loading.num_workers)
    cohort = cohort.with_spacing(training.grid.spacing or rpn_spacing(settings.regions))
    # An argument or a start that does not fit is refused now.
    start_from(StrokeFormer(**vars(training.network)), training.run.init_ckpt_path, cohort.grid.spacing_mm)
    cohort = cohort.cached_in(Path(training.run.default_root_dir) / "cache", "--default_root_dir")
    training = replace(training, grid=replace(training.grid, spacing=cohort.grid.spacing_mm))
    regions, inputs = propose(settings, cohort)
    print(f"Best checkpoint: {train_strokeformer(training, train, val, regions, cohort, name, inputs)}")


def propose(settings: Settings, cohort) -> tuple:
    """The regions of all scans, None for whole volumes, and the digests of scans, masks and what proposes regions."""
    from data.batches.sources import scan_loader
    from data.scans.contrast import common_contrast
    from data.scans.fingerprints import fingerprint
    from models.checkpoints import files_of
    from models.regions import collect_regions, region_source
    from models.training.runs import inputs_of, is_trained, run_folder
    from models.training.starts import start_inputs
    from utils.provenance import require_inputs

    training, regions = settings.training, settings.regions
    workers, folder = training.loading.num_workers, run_folder(training.run, training.run.model_prefix)
    names = [case.name for case in cohort.cases]
    roi_size, contrast = training.network.roi_size, common_contrast(names)
    regions_of = region_source(regions, names, roi_size, cohort.grid.spacing_mm, contrast)
    facts = cohort.admit(workers)
    proposer = regions.regions or regions.rpn_ckpt_path
    files = files_of(proposer) if proposer else []
    digest = fingerprint({"proposer": files}, folder / "fingerprints.json")["proposer"] if files else None
    train, val = cohort.sides
    inputs = inputs_of(train, val, {case.name: facts[case].digest for case in facts}, digest)
    inputs |= start_inputs(training.run.init_ckpt_path)
    if is_trained(folder):  # a training begun with others is refused before the work
        require_inputs(folder, inputs)
    scans = scan_loader(cohort.cases, cohort.prepare, workers)
    return None if regions_of is None else collect_regions(regions_of, scans), inputs


if __name__ == "__main__":
    cli.run(main, parse_args)
