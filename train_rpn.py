"""Train the region proposal network (stage 1) on 2D slices; ``python -m data.slices`` makes them."""

from dataclasses import dataclass

from data.settings import TrainingFolders
from models.training.settings import RPNTraining
from utils import cli
from utils.files import require_writable


@dataclass(frozen=True)
class Settings:
    """Data and training."""

    data: TrainingFolders = TrainingFolders()
    training: RPNTraining = RPNTraining()


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    from data.batches.slices import admit_slices, grid_of_slices, read_slice_table, require_one_size
    from data.scans.cohort import print_shared_subjects

    folders, training, name = settings.data, settings.training, settings.training.run.model_prefix
    training.logging.require_wandb_mode()
    # First: a wrong path is refused before the heavy libraries load.
    train = read_slice_table(folders.train_scans, folders.train_masks, ("--train_scans", "--train_masks"))
    val = read_slice_table(folders.val_scans, folders.val_masks, ("--val_scans", "--val_masks"))
    require_writable(training.run.default_root_dir, "--default_root_dir")
    require_one_size(train, val)
    print_shared_subjects(train.subject, val.subject)

    from data.batches.sources import SliceFiles
    from models.training.devices import use_machine
    from models.training.rpn import build_rpn, train_rpn
    from models.training.runs import run_folder
    from models.training.starts import start_from, start_inputs

    use_machine(training.logging, training.loading.num_workers)
    grid, start = grid_of_slices(train), training.run.init_ckpt_path
    start_from(build_rpn(training.network, grid.scan_dim[0]), start, grid.spacing_mm)  # one that does not fit
    store = run_folder(training.run, name) / "fingerprints.json"
    inputs = start_inputs(start) | admit_slices({"train": train, "val": val}, store, training.loading.num_workers)
    print(f"Best checkpoint: {train_rpn(training, SliceFiles(train), SliceFiles(val), name, inputs)}")


if __name__ == "__main__":
    cli.run(main, parse_args)
