"""K-fold cross-validation of the whole two-stage method on 3D scans.

For each fold: train the RPN on the fold's slices, propose and save the regions of its scans, train StrokeFormer on
them, test both stages. Ends with the mean and standard deviation of every score over the folds. A run that was
interrupted goes on where it stopped. ``--launcher ray`` runs the folds as tasks of a Ray cluster. ``--folds_to_run``
runs some of them, so that the jobs of a cluster can share them, and ``--aggregate`` sums up what they scored.
"""

from functools import partial
from pathlib import Path

from models.cross_validation.settings import CrossValidationSettings as Settings
from utils import cli
from utils.files import require_writable
from utils.validators import LIST

parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    if settings.outputs.target_layers == LIST:
        return print_layers(settings)
    settings.training.logging.require_wandb_mode()
    cohort, origins, groups = open_scans(settings)  # first: a wrong path is refused before the heavy libraries load

    from models.cross_validation.state import CrossValidation, check_settings, missing_results
    from models.training.devices import use_machine

    use_machine(settings.training.logging, settings.num_workers)
    check_networks(settings, cohort.grid.spacing_mm)
    settings = settings.with_groups().with_spacing(cohort.grid.spacing_mm)
    cv = CrossValidation(settings, cohort, origins)
    check_settings(cv)
    if not settings.folds.aggregate:
        run_folds(cv)
    if settings.folds.folds_to_run and (missing := missing_results(cv.folder, cv.number_of_folds())):
        print(f"Folds yet to run: {', '.join(map(str, missing))}; --aggregate sums up when they have been")
    else:
        sum_up(cv, groups)


def open_scans(settings: Settings) -> tuple:
    """The cohort, the origins of its augmented scans, and its groups, once headers and output folders have passed."""
    from data.scans.cohort import augmented_cases, cases_in, refuse_augmented
    from data.scans.grid import grid_of
    from data.scans.groups import group_scans
    from data.scans.open import open_cohort

    folders, folds, run = settings.cohort, settings.folds, settings.training.run
    origins = augmented_cases(folds.augmented_dir) if folds.use_augmented else {}
    grid, brains = grid_of(settings.training.grid), folders.brains_dir
    cohort = open_cohort(cases_in(folders), grid=grid, brains_dir=brains, augmented=tuple(origins))
    refuse_augmented(cohort.cases, "--scans_dir")
    cohort = cohort.with_spacing(settings.training.grid.spacing)
    cache = Path(run.default_root_dir) / run.model_prefix / "cache"
    cohort = cohort.cached_in(cache, "--default_root_dir")
    require_writable(settings.rpn.run.default_root_dir, "--rpn_default_root_dir")
    settings.outputs.require_writable("--scores_dir")
    settings.rpn_outputs.require_writable("--rpn_scores_dir")
    return cohort, origins, group_scans(cohort.cases, settings.outputs.metadata)


def build_networks(settings: Settings) -> tuple:
    """Both untrained networks, stage 1 with anchors that a fold chooses later."""
    from models.segmentation.module import StrokeFormer
    from models.training.rpn import build_rpn

    network = settings.training.network
    return build_rpn(settings.rpn.network, network.in_channels), StrokeFormer(**vars(network))


def check_networks(settings: Settings, spacing_mm) -> None:
    """Build both networks once, so that an argument that does not fit is refused now and not hours from now."""
    from models.evaluation.explanations import find_layers
    from models.training.starts import start_from

    rpn, model = build_networks(settings)
    find_layers(model, settings.outputs.target_layers)
    for network, training in ((rpn, settings.rpn), (model, settings.training)):
        start_from(network, training.run.init_ckpt_path, spacing_mm)


def print_layers(settings: Settings) -> None:
    from models.evaluation.explanations import layers_of

    print(layers_of(build_networks(settings)[1]).table())


def run_folds(cv) -> None:
    """Run the folds of ``--folds_to_run``, or all, where ``--launcher`` says."""
    from models.cross_validation.folds import get_ready, run_fold
    from models.cross_validation.launchers import choose_launcher

    settings = cv.settings
    devices = settings.training.logging.devices
    launch = choose_launcher(settings.launcher, devices)  # first: a missing cluster is refused before scans are read
    folds = get_ready(cv)
    needed = [Path(settings.cohort.scans_dir), Path(settings.cohort.masks_dir), cv.folds_file]
    work = partial(run_fold, cv=cv, folds=folds)
    launch(work, settings.folds.folds_to_run or range(len(folds)), needed)


def sum_up(cv, groups) -> None:
    """Save and print every score over the folds and of subgroups of their scans, and write the report."""
    from models.cross_validation.folds import all_results, order_tables
    from models.evaluation.segmentation import save_subgroups
    from models.training.tracking import log_report
    from report.pages import report_cross_validation
    from utils.scores.intervals import print_summary, summarise_folds

    settings, results = cv.settings, all_results(cv)
    order_tables(cv)
    summary, run = summarise_folds(results, settings.seed), settings.training.run
    print_summary(summary, Path(settings.outputs.scores_dir) / f"{run.model_prefix}_summary.csv")
    models = [cv.names(number)[1] for number in range(cv.number_of_folds())]
    save_subgroups(settings.outputs, run.model_prefix, models, groups, settings.seed)
    page = report_cross_validation(cv, results, summary)
    means = dict(zip(summary.stage + " " + summary.score, summary["mean"], strict=True))
    log_report(cv.folder, run, settings.training.logging, page, means)
    print(f"The report is {page}")


if __name__ == "__main__":
    cli.run(main, parse_args)
