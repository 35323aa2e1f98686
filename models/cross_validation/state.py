"""A cross-validation of both stages: where everything of it lies, and what of a begun one still counts: its folds, its
networks, and the results of its folds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data.batches.datamodules import scan_loader
from data.files.names import result_name
from data.scans.admission import Facts
from data.scans.cohort import Case
from data.scans.fingerprints import PREPARATION_VERSION, check_sources, combined, content_digest, fingerprint
from data.scans.folds import Fold, cases_of, held_out, read_begun_folds, read_folds, usable_augmented, write_folds
from data.scans.open import Cohort
from models.cross_validation.results import RESULTS_VERSION, fold_name, has_results
from models.cross_validation.settings import CrossValidationSettings
from models.training.runs import best_checkpoint, inputs_of, is_finished, is_trained, run_folder
from utils.errors import UserError
from utils.files import rows_of
from utils.provenance import open_run, require_inputs, require_settings, settings_of_results


@dataclass
class CrossValidation:
    """A cross-validation of a cohort that is kept prepared in the folder of the run.

    origins: of each augmented scan the subjects that it is made of.
    facts: of all scans, once they have been admitted.
    """

    settings: CrossValidationSettings
    cohort: Cohort
    origins: Mapping[Case, set[str]]
    facts: Mapping[Case, Facts] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        run = self.settings.training.run
        return run_folder(run, run.model_prefix)

    @property
    def folds_file(self) -> Path:
        return self.folder / "folds.json"

    def regions_file(self, number: int) -> Path:
        return self.folder / f"regions_fold-{number}.json"

    def names(self, number: int) -> tuple[str, str]:
        """Names of the trainings of a fold, of stage 1 and of stage 2."""
        rpn_run, run = self.settings.rpn.run, self.settings.training.run
        return fold_name(rpn_run.model_prefix, number), fold_name(run.model_prefix, number)

    def folders(self, number: int) -> tuple[Path, Path]:
        """Folders of the trainings of a fold, of stage 1 and of stage 2."""
        rpn_name, name = self.names(number)
        return run_folder(self.settings.rpn.run, rpn_name), run_folder(self.settings.training.run, name)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the files of all scans, by the scan's name."""
        return {case.name: facts.digest for case, facts in self.facts.items()}

    def sides(self, fold: Fold) -> tuple[list[Case], list[Case], list[Case]]:
        """The scans of a fold: training, with the augmented ones that it may use, validation and test."""
        train, val, test = (cases_of(self.cohort.cases, subjects) for subjects in (fold.train, fold.val, fold.test))
        return train + usable_augmented(self.origins, fold), val, test

    def scans_of(self, cases: list[Case]):
        """A loader of prepared scans."""
        return scan_loader(cases, self.cohort.prepare, self.settings.num_workers)


def check_settings(cv: CrossValidation) -> None:
    """Refuse, before any scan is read, impossible folds, and other settings than those of a begun run."""
    folds = cv.settings.folds
    if is_trained(cv.folder):
        raise UserError(f"{cv.folder} holds a training; choose another --model_prefix for the cross-validation")
    if is_begun(cv, folds.k):
        require_settings(cv.folder, cv.settings)
    k = number_of_folds(cv)
    if beyond := [number for number in folds.folds_to_run or () if number >= k]:
        raise UserError(f"--folds_to_run {beyond[0]}: there are {k} folds, from 0 to {k - 1}")
    if known_folds(cv) is None:
        held_out(len(_subjects(cv)), folds.k, folds.splits)


# --- folds ---------------------------------------------------------------------------------------------


def number_of_folds(cv: CrossValidation) -> int:
    known = known_folds(cv)
    return cv.settings.folds.k if known is None else len(known)


def known_folds(cv: CrossValidation) -> list[Fold] | None:
    """The folds of ``--folds`` or of the run as it was begun; None where nothing has been trained yet."""
    folds = cv.settings.folds
    if folds.folds:
        return read_folds(folds.folds, _subjects(cv))
    if is_begun(cv, folds.k):
        return read_begun_folds(cv.folds_file, _subjects(cv))
    return None


def _subjects(cv: CrossValidation) -> set[str]:
    return {case.subject for case in cv.cohort.cases}


# --- networks ------------------------------------------------------------------------------------------


def is_begun(cv: CrossValidation, k: int) -> bool:
    """Whether a network of the first `k` folds has learned anything."""
    folders = (folder for number in range(k) for folder in cv.folders(number))
    return cv.folds_file.exists() and any(map(is_trained, folders))


def record_or_refuse(cv: CrossValidation, folds: list[Fold]) -> None:
    """Record the run, or refuse a begun one of other settings, folds or data.

    A network belongs to the scans that it learned from, and to the stage 1 that proposed its regions. Other scans may
    change or be new: then the fold is tested anew.
    """
    settings = cv.settings
    inputs = {"folds.json": combined({str(number): repr(fold) for number, fold in enumerate(folds)})}
    open_run(cv.folder, settings, inputs, is_begun(cv, len(folds)))
    if cv.cohort.augmented:
        check_sources(Path(settings.folds.augmented_dir), cv.digests)
    for number, fold in enumerate(folds):
        rpn_folder, folder = cv.folders(number)
        if is_trained(rpn_folder):
            require_inputs(rpn_folder, fold_inputs(cv, fold))
        if is_trained(folder):
            finished = is_finished(rpn_folder, settings.rpn.run.max_epochs)
            proposer = rpn_digest(cv, number) if finished else "yet to be trained"
            require_inputs(folder, fold_inputs(cv, fold, proposer))
    k, splits = settings.folds.k, list(settings.folds.splits)
    write_folds(cv.folds_file, folds, seed=settings.seed, k=k, splits=splits)


def fold_inputs(cv: CrossValidation, fold: Fold, proposer: str | None = None) -> dict[str, str]:
    """What the networks of a fold learn from; `proposer`, the digest of its stage 1, for stage 2 alone."""
    train, val, _ = cv.sides(fold)
    return inputs_of(train, val, cv.digests, proposer)


def network_digests(cv: CrossValidation, number: int) -> dict[str, str]:
    """The digests of both networks of a fold."""
    _, folder = cv.folders(number)
    return {"rpn": rpn_digest(cv, number), "strokeformer": content_digest([best_checkpoint(folder)])}


def rpn_digest(cv: CrossValidation, number: int) -> str:
    """The digest of the stage 1 that proposes the regions of a fold."""
    rpn_folder, folder = cv.folders(number)
    return fingerprint({"rpn": [best_checkpoint(rpn_folder)]}, folder / "fingerprints.json")["rpn"]


# --- results -------------------------------------------------------------------------------------------


def has_current_results(cv: CrossValidation, number: int, fold: Fold) -> bool:
    """Whether all that a fold leaves is there already, of the same networks, scans, settings and versions."""
    epochs = (run.max_epochs for run in (cv.settings.rpn.run, cv.settings.training.run))
    if not all(map(is_finished, cv.folders(number), epochs)):
        return False
    same = has_results(cv.folder, number, identity_of_test(cv, number, fold))
    return same and _has_outputs(cv, number, cv.sides(fold)[2])


def identity_of_test(cv: CrossValidation, number: int, fold: Fold) -> Mapping[str, object]:
    """What distinguishes the results of a fold's test from others: its networks, how it was tested, its table rows."""
    scans = {case.name: cv.digests[case.name] for case in cv.sides(fold)[2]}
    outputs = cv.settings.rpn_outputs, cv.settings.outputs
    of_stages = zip(outputs, cv.names(number), strict=True)
    # Another test of the same name would replace these rows of the tables of scores.
    tables = {f"{name}/{path.name}": rows_of(path, name) for of, name in of_stages for path in of.tables}
    settings = repr(sorted(settings_of_results(cv.settings).items()))
    versions = f"{PREPARATION_VERSION}, {RESULTS_VERSION}"
    return {
        "networks": network_digests(cv, number),
        "test": combined({**scans, "settings": settings, "versions": versions}),
        "tables": combined(tables),
    }


def _has_outputs(cv: CrossValidation, number: int, test: list[Case]) -> bool:
    """Whether regions and predictions of a fold are where they were written."""
    folder = Path(cv.settings.outputs.scores_dir) / cv.names(number)[1] / "predictions"
    files = [cv.regions_file(number), *(folder / result_name(case.scan, "prediction") for case in test)]
    return all(file.exists() for file in files)
