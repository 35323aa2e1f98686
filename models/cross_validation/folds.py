"""The steps of a cross-validation and of each of its folds."""

from pathlib import Path

from data.files.listing import counted
from data.scans.folds import Fold, cases_of, lesion_loads, make_folds, make_group_folds
from data.scans.groups import print_mixed_centres
from models.checkpoints import load_model
from models.cross_validation.state import (
    CrossValidation,
    has_current_results,
    identity_of_test,
    missing_results,
    read_results,
    record_or_refuse,
    results_file,
    write_results,
)
from models.device import use_devices
from models.evaluation.proposals import evaluate_rpn
from models.evaluation.segmentation import evaluate_strokeformer
from models.pipeline import TwoStage
from models.precision import use_precision
from models.regions import collect_regions, rpn_source
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.rpn import train_rpn
from models.training.strokeformer import pipeline_of, train_strokeformer
from utils.errors import UserError
from utils.files import locked, order_rows
from utils.provenance import save_run
from utils.regions.region import write_regions
from utils.scores.intervals import Estimate


def get_ready(cv: CrossValidation) -> list[Fold]:
    """Do once what the folds share: prepare the scans, record the run; the folds.

    Jobs that share a cross-validation wait for the first of them.
    """
    settings, cohort = cv.settings, cv.cohort
    with locked(cv.folds_file):
        cv.facts = cohort.admit(settings.num_workers)
        if (folds := cv.known_folds()) is None:
            loads = lesion_loads({case: cv.facts[case].lesion for case in cohort.cases})
            how = settings.folds.k, settings.folds.splits, settings.seed
            folds = make_group_folds(loads, cv.groups, *how) if cv.groups else make_folds(loads, *how)
        if not cv.groups:
            print_mixed_centres(cohort.cases, folds)
        record_or_refuse(cv, folds)
        return folds


def run_fold(number: int, cv: CrossValidation, folds: list[Fold]) -> None:
    """Train and test one of the folds, given what `get_ready` returns, unless its results are there already."""
    logs = cv.settings.training.logging
    use_devices(logs.devices)  # a fold may run in a process of its own
    use_precision(logs.precision)
    fold = folds[number]
    sizes = f"{len(fold.train)} training, {len(fold.val)} validation and {len(fold.test)} test subjects"
    print(f"Fold {number + 1} of {len(folds)}: {sizes}")
    if has_current_results(cv, number, fold):
        print(f"Fold {number + 1} is trained and tested already")
        return
    results_file(cv.folder, number).unlink(missing_ok=True)  # the tables are about to change
    scores = _test(number, cv, fold, *_train(number, cv, fold))
    rows = [
        {"fold": number, "stage": stage, "score": score, "estimate": estimate}
        for stage, estimates in scores.items()
        for score, estimate in estimates.items()
    ]
    write_results(cv.folder, number, rows, identity_of_test(cv, number, fold))


def _train(number: int, cv: CrossValidation, fold: Fold) -> tuple[RPN, TwoStage]:
    """Train stage 1, propose and save the regions of all scans of a fold, and train stage 2 on them."""
    settings, cohort = cv.settings, cv.cohort
    (rpn_name, name), (train, val, test) = cv.names(number), cv.sides(fold)
    if cohort.augmented:
        used = len(train) - len(cases_of(cohort.cases, fold.train))
        print(f"{used} of {len(cohort.augmented)} augmented scans are made of training subjects alone and used")
    slices = cv.slices_of(train), cv.slices_of(val)
    rpn = load_model(RPN, train_rpn(settings.rpn, *slices, rpn_name, cv.inputs(fold)))
    scans = cv.scans_of([*train, *val, *test])
    regions = collect_regions(rpn_source(rpn, settings.training.network.roi_size), scans)
    write_regions(cv.regions_file(number), regions)
    inputs = cv.inputs(fold, cv.rpn_digest(number))
    checkpoint = train_strokeformer(settings.training, train, val, regions, cohort, name, inputs)
    return rpn, pipeline_of(load_model(StrokeFormer, checkpoint), settings.training, regions)


def _test(number: int, cv: CrossValidation, fold: Fold, rpn: RPN, pipeline: TwoStage) -> dict[str, dict[str, Estimate]]:
    """Test both stages; the scores of each by its name."""
    settings, seed, test = cv.settings, cv.settings.seed, cv.sides(fold)[2]
    (rpn_name, name), scans = cv.names(number), cv.scans_of(test)
    roi_size, batch_size = settings.training.network.roi_size, settings.rpn.loading.batch_size
    proposals = evaluate_rpn(rpn, scans, rpn_name, settings.rpn_outputs, seed, roi_size, batch_size)
    save_run(Path(settings.rpn_outputs.scores_dir) / rpn_name, settings)
    lesions = evaluate_strokeformer(pipeline, test, scans, name, settings.outputs, seed)
    save_run(Path(settings.outputs.scores_dir) / name, settings)
    return {"rpn": proposals, "strokeformer": lesions or {}}


def all_results(cv: CrossValidation) -> list[dict]:
    """A row (fold, stage, score, estimate) for every score of all folds; refuses where one has not been run."""
    if missing := missing_results(cv.folder, cv.number_of_folds()):
        raise UserError(
            f"{counted(len(missing), 'fold')} of {cv.folder} yet to run; give the same command with "
            f"--folds_to_run {' '.join(map(str, missing))}"
        )
    numbers = range(cv.number_of_folds())
    return [row for number in numbers for row in read_results(cv.folder, number, cv.network_digests(number))]


def order_tables(cv: CrossValidation) -> None:
    """Put the folds' rows in all tables of scores into their order, whichever fold ended first."""
    numbers = range(cv.number_of_folds())
    for stage, outputs in enumerate((cv.settings.rpn_outputs, cv.settings.outputs)):
        for table in outputs.tables:
            order_rows(table, [cv.names(number)[stage] for number in numbers])
