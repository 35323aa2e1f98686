"""The steps of a cross-validation and of each of its folds."""

from pathlib import Path

import pandas as pd

from data.batches.cutting import cut_cohort
from data.files.listing import counted
from data.scans.folds import Fold, cases_of
from models.checkpoints import load_model
from models.cross_validation.results import missing_results, read_results, results_file, write_results
from models.cross_validation.resuming import (
    choose_folds,
    fold_inputs,
    has_current_results,
    identity_of_test,
    network_digests,
    number_of_folds,
    record_or_refuse,
    rpn_digest,
)
from models.cross_validation.validation import CrossValidation
from models.evaluation.proposals import evaluate_rpn
from models.evaluation.segmentation import evaluate_strokeformer
from models.precision import use_precision
from models.regions import collect_regions, rpn_source
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.training.rpn import train_rpn
from models.training.strokeformer import pipeline_of, train_strokeformer
from utils.errors import UserError
from utils.files import locked, order_rows
from utils.provenance import save_run
from utils.regions.region import Region, write_regions
from utils.scores.intervals import Estimate

Regions = dict[str, list[Region]]  # of each scan by its file name
Scores = dict[str, Estimate]


def get_ready(validation: CrossValidation) -> tuple[list[Fold], pd.DataFrame]:
    """Do once what the folds share: prepare the scans, record the run, cut the slices; folds and slices.

    Jobs that share a cross-validation wait for the first of them.
    """
    with locked(validation.folds_file):
        validation.facts = validation.cohort.admit(validation.settings.num_workers)
        folds = choose_folds(validation)
        record_or_refuse(validation, folds)
        cohort = validation.cohort
        slices, workers = validation.folder / "slices", validation.settings.num_workers
        return folds, cut_cohort(cohort.everything, cohort.grid, cohort.prepare, slices, workers)


def run_fold(number: int, validation: CrossValidation, folds: list[Fold], slices: pd.DataFrame) -> None:
    """Train and test a fold, unless its results are there already.

    Args:
        folds, slices: what `get_ready` returns.
    """
    use_precision(validation.settings.training.logging.precision)  # a fold may run in a process of its own
    fold = folds[number]
    sizes = f"{len(fold.train)} training, {len(fold.val)} validation and {len(fold.test)} test subjects"
    print(f"Fold {number + 1} of {len(folds)}: {sizes}")
    if has_current_results(validation, number, fold):
        print(f"Fold {number + 1} is trained and tested already")
        return
    results_file(validation.folder, number).unlink(missing_ok=True)  # the tables are about to change
    _print_augmented(validation, fold)
    rpn = _train_rpn(number, validation, fold, slices)
    regions = _propose(number, validation, fold, rpn)
    model = _train_strokeformer(number, validation, fold, regions)
    scores = {
        "rpn": _test_rpn(number, validation, fold, rpn),
        "strokeformer": _test_strokeformer(number, validation, fold, model, regions),
    }
    rows = [
        {"fold": number, "stage": stage, "score": score, "estimate": estimate}
        for stage, estimates in scores.items()
        for score, estimate in estimates.items()
    ]
    write_results(validation.folder, number, rows, identity_of_test(validation, number, fold))


# --- the steps of a fold -------------------------------------------------------------------------------


def _print_augmented(validation: CrossValidation, fold: Fold) -> None:
    if augmented := validation.cohort.augmented:
        used = len(validation.sides(fold)[0]) - len(cases_of(validation.cohort.cases, fold.train))
        print(f"{used} of {len(augmented)} augmented scans are made of training subjects alone and used")


def _train_rpn(number: int, validation: CrossValidation, fold: Fold, slices: pd.DataFrame) -> RPN:
    train, val, _ = validation.sides(fold)
    train_slices, val_slices = (slices[slices.volume.isin([case.name for case in side])] for side in (train, val))
    name, inputs = validation.names(number)[0], fold_inputs(validation, fold)
    return load_model(RPN, train_rpn(validation.settings.rpn, train_slices, val_slices, name, inputs))


def _propose(number: int, validation: CrossValidation, fold: Fold, rpn: RPN) -> Regions:
    """Propose the regions of all scans of a fold, and save them."""
    scans = validation.scans_of([case for side in validation.sides(fold) for case in side])
    regions = collect_regions(rpn_source(rpn, validation.settings.training.network.roi_size), scans)
    write_regions(validation.regions_file(number), regions)
    return regions


def _train_strokeformer(number: int, validation: CrossValidation, fold: Fold, regions: Regions) -> StrokeFormer:
    train, val, _ = validation.sides(fold)
    inputs = fold_inputs(validation, fold, rpn_digest(validation, number))
    name, cohort = validation.names(number)[1], validation.cohort
    settings = validation.settings.training
    return load_model(StrokeFormer, train_strokeformer(settings, train, val, regions, cohort, name, inputs))


def _test_rpn(number: int, validation: CrossValidation, fold: Fold, rpn: RPN) -> Scores:
    settings, test, name = validation.settings, validation.sides(fold)[2], validation.names(number)[0]
    roi_size, batch_size = settings.training.network.roi_size, settings.rpn.loading.batch_size
    outputs, scans = settings.rpn_outputs, validation.scans_of(test)
    scores = evaluate_rpn(rpn, scans, len(test), name, outputs, settings.seed, roi_size, batch_size)
    save_run(Path(outputs.scores_dir) / name, settings)
    return scores


def _test_strokeformer(
    number: int, validation: CrossValidation, fold: Fold, model: StrokeFormer, regions: Regions
) -> Scores:
    settings, test, name = validation.settings, validation.sides(fold)[2], validation.names(number)[1]
    pipeline = pipeline_of(model, settings.training, regions)
    scores = evaluate_strokeformer(pipeline, test, validation.scans_of(test), name, settings.outputs, settings.seed)
    save_run(Path(settings.outputs.scores_dir) / name, settings)
    return scores or {}


# --- all folds -----------------------------------------------------------------------------------------


def missing_folds(validation: CrossValidation) -> list[int]:
    """The folds that have not been run to their end."""
    return missing_results(validation.folder, number_of_folds(validation))


def all_results(validation: CrossValidation) -> list[dict]:
    """A row (fold, stage, score, estimate) for every score of all folds; refuses where one has not been run."""
    if missing := missing_folds(validation):
        raise UserError(
            f"{counted(len(missing), 'fold')} of {validation.folder} yet to run; give the same command with "
            f"--folds_to_run {' '.join(map(str, missing))}"
        )
    folder, numbers = validation.folder, range(number_of_folds(validation))
    return [row for number in numbers for row in read_results(folder, number, network_digests(validation, number))]


def order_tables(validation: CrossValidation) -> None:
    """Put the folds' rows in all tables of scores into their order, whichever fold ended first."""
    names = zip(*map(validation.names, range(number_of_folds(validation))), strict=True)
    outputs = validation.settings.rpn_outputs, validation.settings.outputs
    for of_stage, names_of_stage in zip(outputs, names, strict=True):
        for table in of_stage.tables:
            order_rows(table, names_of_stage)
