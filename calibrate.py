"""Choose the thresholds of both stages anew on scans with masks, without training, for scans unlike the training's."""

from dataclasses import dataclass
from pathlib import Path

from data.settings import brains_option, workers_option
from models.segmentation.settings import contrast_option
from models.training.settings import StrokeFormerTraining, device_option
from utils import cli
from utils.errors import UserError
from utils.settings import option
from utils.validators import pathname

STAGE_1, STAGE_2 = "stage1.ckpt", "stage2.ckpt"


@dataclass(frozen=True)
class Settings:
    """Scans and networks."""

    scans: tuple[str, ...] = option(
        pathname, "scans or folders of scans (.npy, .nii, .nii.gz)", required=True, nargs="+"
    )
    masks: tuple[str, ...] = option(pathname, "their masks or folders of masks", required=True, nargs="+")
    rpn_ckpt_path: str = option(pathname, "checkpoint of stage 1, or folder of an exported model", required=True)
    ckpt_path: tuple[str, ...] = option(
        pathname,
        "checkpoint of stage 2, or folder of an exported model; of several one is made, which averages them",
        required=True,
        nargs="+",
    )
    out_dir: str = option(pathname, "folder of the two new checkpoints and of the tables they rest on", required=True)
    brains_dir: tuple[str, ...] | None = brains_option()
    contrast: str | None = contrast_option()
    devices: int = device_option()
    num_workers: int = workers_option()


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    from data.scans.cohort import pair_cases
    from data.scans.open import open_cohort

    cases = pair_cases(settings.scans, settings.masks)  # first: a wrong path is refused before heavy libraries load

    from models.checkpoints import grid_at_test, joined_checkpoint, load_model, load_strokeformer, require_fit
    from models.device import use_devices
    from models.rpn.module import RPN
    from utils.provenance import save_run

    use_devices([settings.devices])
    folder = Path(settings.out_dir)
    rpn, model = load_model(RPN, settings.rpn_ckpt_path), load_strokeformer(settings.ckpt_path)
    first, stage_2 = settings.ckpt_path[0], joined_checkpoint(settings.ckpt_path)
    grid = grid_at_test(model, None, None, first)
    require_fit(rpn, settings.rpn_ckpt_path, grid, model.contrast)
    cohort = open_cohort(cases, grid=grid, brains_dir=settings.brains_dir)
    cohort = cohort.on(grid, model.contrast, first, settings.contrast)
    cohort = cohort.cached_in(folder / "cache", "--out_dir")
    if not any(facts.lesion for facts in cohort.admit(settings.num_workers).values()):
        raise UserError("--masks hold no lesion; thresholds are chosen on scans with lesions")
    choose_thresholds(settings, cohort, rpn, stage_2)
    save_run(folder, settings)
    print(f"The networks with their new thresholds are {folder / STAGE_1} and {folder / STAGE_2}")


def choose_thresholds(settings: Settings, cohort, rpn, stage_2: dict) -> None:
    """Write checkpoints of both stages: first that of stage 1, by whose regions stage 2 then chooses."""
    from data.batches.sources import scan_loader
    from models.checkpoints import load_rpn, store_copy, write_checkpoint
    from models.regions import collect_regions, rpn_source
    from models.training.rpn import calibrated
    from models.training.strokeformer import decide

    folder, roi_size = Path(settings.out_dir), stage_2["hyper_parameters"]["roi_size"]
    scans = scan_loader(cohort.cases, cohort.prepare, settings.num_workers)
    threshold = calibrated(rpn, scans, roi_size, folder)
    store_copy(settings.rpn_ckpt_path, folder / STAGE_1, "RPN", score_threshold=threshold)
    regions = collect_regions(rpn_source(load_rpn(folder / STAGE_1), roi_size), scans)
    write_checkpoint(folder / STAGE_2, stage_2)
    chosen = decide(StrokeFormerTraining(), cohort.cases, regions, cohort, folder, folder / STAGE_2)
    if not chosen.found:
        print("No lesion of --masks is found in --scans by any threshold: do they belong together? Use neither network")


if __name__ == "__main__":
    cli.run(main, parse_args)
