"""What of a begun cross-validation still counts: its folds, its networks, and the results of its folds."""

from collections.abc import Mapping
from pathlib import Path

from data.files.names import result_name
from data.scans.cohort import Case
from data.scans.fingerprints import PREPARATION_VERSION, check_sources, combined, content_digest, fingerprint
from data.scans.folds import Fold, held_out, lesion_loads, make_folds, read_begun_folds, read_folds, write_folds
from models.cross_validation.results import RESULTS_VERSION, has_results
from models.cross_validation.validation import CrossValidation
from models.training.runs import best_checkpoint, inputs_of, is_finished, is_trained
from utils.errors import UserError
from utils.files import rows_of
from utils.provenance import open_run, require_inputs, require_settings, settings_of_results


def check_settings(validation: CrossValidation) -> None:
    """Refuse, before any scan is read, impossible folds, and other settings than those of a begun run."""
    folds = validation.settings.folds
    if is_trained(validation.folder):
        raise UserError(f"{validation.folder} holds a training; choose another --model_prefix for the cross-validation")
    if is_begun(validation, folds.k):
        require_settings(validation.folder, validation.settings)
    k = number_of_folds(validation)
    if beyond := [number for number in folds.folds_to_run or () if number >= k]:
        raise UserError(f"--folds_to_run {beyond[0]}: there are {k} folds, from 0 to {k - 1}")
    if known_folds(validation) is None:
        held_out(len(_subjects(validation)), folds.k, folds.splits)


# --- folds ---------------------------------------------------------------------------------------------


def number_of_folds(validation: CrossValidation) -> int:
    known = known_folds(validation)
    return validation.settings.folds.k if known is None else len(known)


def known_folds(validation: CrossValidation) -> list[Fold] | None:
    """The folds of ``--folds`` or of the run as it was begun; None where nothing has been trained yet."""
    folds = validation.settings.folds
    if folds.folds:
        return read_folds(folds.folds, _subjects(validation))
    if is_begun(validation, folds.k):
        return read_begun_folds(validation.folds_file, _subjects(validation))
    return None


def choose_folds(validation: CrossValidation) -> list[Fold]:
    """The folds that are known or, without them, new ones."""
    if (folds := known_folds(validation)) is not None:
        return folds
    loads = lesion_loads({case: validation.facts[case].lesion for case in validation.cohort.cases})
    return make_folds(loads, validation.settings.folds.k, validation.settings.folds.splits, validation.settings.seed)


def _subjects(validation: CrossValidation) -> set[str]:
    return {case.subject for case in validation.cohort.cases}


# --- networks ------------------------------------------------------------------------------------------


def is_begun(validation: CrossValidation, k: int) -> bool:
    """Whether a network of the first `k` folds has learned anything."""
    folders = (folder for number in range(k) for folder in validation.folders(number))
    return validation.folds_file.exists() and any(map(is_trained, folders))


def record_or_refuse(validation: CrossValidation, folds: list[Fold]) -> None:
    """Record the run, or refuse a begun one of other settings, folds or data.

    A network belongs to the scans that it learned from. Others may change or be new: then the fold is tested anew.
    """
    settings = validation.settings
    inputs = {"folds.json": combined({str(number): repr(fold) for number, fold in enumerate(folds)})}
    open_run(validation.folder, settings, inputs, is_begun(validation, len(folds)))
    if validation.cohort.augmented:
        check_sources(Path(settings.folds.augmented_dir), validation.digests)
    for number, fold in enumerate(folds):
        _require_own_inputs(validation, number, fold)
    k, splits = settings.folds.k, list(settings.folds.splits)
    write_folds(validation.folds_file, folds, seed=settings.seed, k=k, splits=splits)


def _require_own_inputs(validation: CrossValidation, number: int, fold: Fold) -> None:
    """Refuse begun networks of a fold that learned from other scans, or from regions of another stage 1."""
    rpn_folder, folder = validation.folders(number)
    if is_trained(rpn_folder):
        require_inputs(rpn_folder, fold_inputs(validation, fold))
    if is_trained(folder):
        finished = is_finished(rpn_folder, validation.settings.rpn.run.max_epochs)
        proposer = rpn_digest(validation, number) if finished else "yet to be trained"
        require_inputs(folder, fold_inputs(validation, fold, proposer))


def fold_inputs(validation: CrossValidation, fold: Fold, proposer: str | None = None) -> dict[str, str]:
    """What the networks of a fold learn from; `proposer`, the digest of its stage 1, for stage 2 alone."""
    train, val, _ = validation.sides(fold)
    return inputs_of(train, val, validation.digests, proposer)


def network_digests(validation: CrossValidation, number: int) -> dict[str, str]:
    """The digests of both networks of a fold."""
    _, folder = validation.folders(number)
    return {"rpn": rpn_digest(validation, number), "strokeformer": content_digest([best_checkpoint(folder)])}


def rpn_digest(validation: CrossValidation, number: int) -> str:
    """The digest of the stage 1 that proposes the regions of a fold."""
    rpn_folder, folder = validation.folders(number)
    return fingerprint({"rpn": [best_checkpoint(rpn_folder)]}, folder / "fingerprints.json")["rpn"]


# --- results -------------------------------------------------------------------------------------------


def has_current_results(validation: CrossValidation, number: int, fold: Fold) -> bool:
    """Whether all that a fold leaves is there already, of the same networks, scans, settings and versions."""
    epochs = (run.max_epochs for run in (validation.settings.rpn.run, validation.settings.training.run))
    if not all(map(is_finished, validation.folders(number), epochs)):
        return False
    same = has_results(validation.folder, number, identity_of_test(validation, number, fold))
    return same and _has_outputs(validation, number, validation.sides(fold)[2])


def identity_of_test(validation: CrossValidation, number: int, fold: Fold) -> Mapping[str, object]:
    """What distinguishes the results of a fold's test from others: its networks, how it was tested, its table rows."""
    scans = {case.name: validation.digests[case.name] for case in validation.sides(fold)[2]}
    settings = repr(sorted(settings_of_results(validation.settings).items()))
    versions = f"{PREPARATION_VERSION}, {RESULTS_VERSION}"
    return {
        "networks": network_digests(validation, number),
        "test": combined({**scans, "settings": settings, "versions": versions}),
        "tables": _tables_digest(validation, number),
    }


def _tables_digest(validation: CrossValidation, number: int) -> str:
    """Of a fold's rows in all tables of scores: another test of the same name would replace them."""
    outputs = validation.settings.rpn_outputs, validation.settings.outputs
    of_stages = zip(outputs, validation.names(number), strict=True)
    return combined({f"{name}/{path.name}": rows_of(path, name) for of, name in of_stages for path in of.tables})


def _has_outputs(validation: CrossValidation, number: int, test: list[Case]) -> bool:
    """Whether regions and predictions of a fold are where they were written."""
    folder = Path(validation.settings.outputs.scores_dir) / validation.names(number)[1] / "predictions"
    files = [validation.regions_file(number), *(folder / result_name(case.scan, "prediction") for case in test)]
    return all(file.exists() for file in files)
