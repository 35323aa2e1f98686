"""A cross-validation of both stages: where everything of it lies, and what of a begun one still counts: its folds, its
networks, and the results of its folds, which are kept in a file each, so that they can be joined."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from data.batches.sources import ScanSlices, scan_loader
from data.files.listing import counted
from data.files.names import result_name
from data.scans.atlas import atlas_files
from data.scans.cohort import Case
from data.scans.fingerprints import PREPARATION_VERSION, check_sources, combined, content_digest, fingerprint
from data.scans.folds import (
    Fold,
    cases_of,
    held_out,
    listed_folds,
    read_begun_folds,
    read_folds,
    require_groups,
    usable_augmented,
    write_folds,
)
from data.scans.groups import groups_of, read_metadata, require_whole_groups
from data.scans.open import Cohort, Facts
from models.cross_validation.settings import CrossValidationSettings
from models.export.exported import is_model
from models.training.runs import best_checkpoint, inputs_of, is_finished, is_trained, run_folder
from models.training.starts import start_inputs
from utils.errors import UserError
from utils.files import read_json, rows_of, write_json
from utils.provenance import open_run, read_run, require_inputs, require_settings, settings_of_results
from utils.scores.intervals import Estimate

# Raised by hand when the same networks would get other scores or other files: folds are then tested anew.
RESULTS_VERSION = 4


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

    @property
    def subjects(self) -> set[str]:
        return {case.subject for case in self.cohort.cases}

    @cached_property
    def groups(self) -> dict[str, str]:
        """Of each subject, the group that ``--groups`` keeps on one side; empty without it."""
        column, table = self.settings.folds.groups, self.settings.outputs.metadata
        return groups_of(self.cohort.cases, column, read_metadata(table) if table else None) if column else {}

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

    def slices_of(self, cases: list[Case]) -> ScanSlices:
        """What stage 1 learns from."""
        return ScanSlices(cases, self.cohort, self.settings.num_workers)

    def known_folds(self) -> list[Fold] | None:
        """The folds of ``--folds`` or of the run as it was begun; None where nothing has been trained yet."""
        folds = self.settings.folds
        if folds.folds:
            return read_folds(folds.folds, self.subjects)
        return read_begun_folds(self.folds_file, self.subjects) if self.is_begun(folds.k) else None

    def number_of_folds(self) -> int:
        known = self.known_folds()
        return self.settings.folds.k if known is None else len(known)

    def is_begun(self, k: int) -> bool:
        """Whether a network of the first `k` folds has learned anything."""
        folders = (folder for number in range(k) for folder in self.folders(number))
        return self.folds_file.exists() and any(map(is_trained, folders))

    def inputs(self, fold: Fold, proposer: str | None = None) -> dict[str, str]:
        """What the networks of a fold learn from; `proposer`, the digest of its stage 1, for stage 2 alone."""
        train, val, _ = self.sides(fold)
        training = self.settings.rpn if proposer is None else self.settings.training
        return inputs_of(train, val, self.digests, proposer) | start_inputs(training.run.init_ckpt_path)

    def rpn_digest(self, number: int) -> str:
        """The digest of the stage 1 that proposes the regions of a fold."""
        rpn_folder, folder = self.folders(number)
        return fingerprint({"rpn": [best_checkpoint(rpn_folder)]}, folder / "fingerprints.json")["rpn"]

    def network_digests(self, number: int) -> dict[str, str]:
        _, folder = self.folders(number)
        return {"rpn": self.rpn_digest(number), "strokeformer": content_digest([best_checkpoint(folder)])}


def fold_name(prefix: str, number: int) -> str:
    """Name of a fold's training, by the ``--model_prefix`` of its stage."""
    return f"{prefix}_fold-{number}"


def check_settings(cv: CrossValidation) -> None:
    """Refuse, before any scan is read, impossible folds, and other settings than those of a begun run."""
    folds = cv.settings.folds
    if is_trained(cv.folder):
        raise UserError(f"{cv.folder} holds a training; choose another --model_prefix for the cross-validation")
    if cv.is_begun(folds.k):
        require_settings(cv.folder, cv.settings)
    k = cv.number_of_folds()
    if beyond := [number for number in folds.folds_to_run or () if number >= k]:
        raise UserError(f"--folds_to_run {beyond[0]}: there are {k} folds, from 0 to {k - 1}")
    if (known := cv.known_folds()) is not None:
        require_whole_groups(known, cv.groups, folds.folds or cv.folds_file)
    else:
        held_out(len(cv.subjects), folds.k, folds.splits)
        if folds.groups:
            require_groups(cv.groups, folds.k, folds.splits)


def record_or_refuse(cv: CrossValidation, folds: list[Fold]) -> None:
    """Record the run, or refuse a begun one of other settings, folds or data.

    A network belongs to the scans that it learned from, and to the stage 1 that proposed its regions. Other scans may
    change or be new: then the fold is tested anew.
    """
    settings = cv.settings
    inputs = {"folds.json": combined({str(number): repr(fold) for number, fold in enumerate(folds)})}
    open_run(cv.folder, settings, inputs, cv.is_begun(len(folds)))
    if cv.cohort.augmented:
        check_sources(Path(settings.folds.augmented_dir), cv.digests)
    for number, fold in enumerate(folds):
        rpn_folder, folder = cv.folders(number)
        if is_trained(rpn_folder):
            require_inputs(rpn_folder, cv.inputs(fold))
        if is_trained(folder):
            finished = is_finished(rpn_folder, settings.rpn.run.max_epochs)
            proposer = cv.rpn_digest(number) if finished else "yet to be trained"
            require_inputs(folder, cv.inputs(fold, proposer))
    k, splits = settings.folds.k, settings.folds.splits
    write_folds(cv.folds_file, folds, seed=settings.seed, k=k, splits=splits, groups=cv.groups)


def checkpoints_in(paths: Sequence[str], prefix: str = "") -> tuple[str, ...]:
    """The checkpoints and exported models among paths; a folder of a cross-validation means the best ones of its folds.

    `prefix` is that of the stage's arguments, ``rpn_`` for stage 1. Refuses other folders, and folds yet to run.
    """
    folders = {path for path in paths if Path(path).is_dir() and not is_model(path)}
    lists = [_fold_checkpoints(Path(path), prefix) if path in folders else [path] for path in paths]
    return tuple(chain.from_iterable(lists))


def _fold_checkpoints(folder: Path, prefix: str) -> list[str]:
    if not (folder / "folds.json").exists() or not (settings := read_run(folder).get("settings")):
        raise UserError(
            f"{folder} is no folder of a cross-validation, which holds folds.json and run.json; give that "
            "(StrokeFormer/<model_prefix>) or .ckpt files"
        )
    k = len(listed_folds(folder / "folds.json"))
    if missing := missing_results(folder, k):
        raise UserError(
            f"{counted(len(missing), 'fold')} of {folder} yet to run; run cross_validation.py with --folds_to_run "
            f"{' '.join(map(str, missing))}, or give the .ckpt files of the others"
        )
    # Both stages may have been moved together.
    root = os.path.relpath(settings[f"{prefix}default_root_dir"], settings["default_root_dir"])
    names = [fold_name(settings[f"{prefix}model_prefix"], number) for number in range(k)]
    return [os.path.normpath(best_checkpoint(folder.parent / root / name)) for name in names]


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
    of_stages = zip((cv.settings.rpn_outputs, cv.settings.outputs), cv.names(number), strict=True)
    # Another test of the same name would replace these rows of the tables of scores.
    tables = {f"{name}/{path.name}": rows_of(path, name) for of, name in of_stages for path in of.tables}
    settings = repr(sorted(settings_of_results(cv.settings).items()))
    versions = f"{PREPARATION_VERSION}, {RESULTS_VERSION}"
    atlas = content_digest(atlas_files(cv.settings.outputs.atlas))
    return {
        "networks": cv.network_digests(number),
        "test": combined({**scans, "settings": settings, "versions": versions, "atlas": atlas}),
        "tables": combined(tables),
    }


def _has_outputs(cv: CrossValidation, number: int, test: list[Case]) -> bool:
    """Whether regions and predictions of a fold are where they were written."""
    folder = Path(cv.settings.outputs.scores_dir) / cv.names(number)[1] / "predictions"
    files = [cv.regions_file(number), *(folder / result_name(case.scan, "prediction") for case in test)]
    return all(file.exists() for file in files)


def results_file(folder: Path, number: int) -> Path:
    return folder / f"results_fold-{number}.json"


def write_results(folder: Path, number: int, rows: list[dict], tested: Mapping[str, object]) -> None:
    """Keep the scores of a fold: rows of ``stage``, ``score`` and ``estimate``, and what was `tested`.

    `tested` distinguishes this test from others; its ``networks`` are the digests of what was tested.
    """
    plain = []
    for row in rows:  # JSON's numbers keep every digit; NaN is kept as well
        estimate = {name: np.asarray(value).tolist() for name, value in vars(row["estimate"]).items()}
        plain.append({**row, "estimate": estimate})
    write_json(results_file(folder, number), {**tested, "rows": plain})


def has_results(folder: Path, number: int, tested: Mapping[str, object]) -> bool:
    """Whether a fold has the scores of this very test."""
    try:
        results = read_json(results_file(folder, number))
        return all(results[key] == value for key, value in tested.items())
    except (UserError, KeyError, TypeError):
        return False  # they only save time: without them the fold is tested anew


def read_results(folder: Path, number: int, networks: dict[str, str]) -> list[dict]:
    """The rows of `write_results`, to the last digit; refuses those of other networks."""
    path = results_file(folder, number)
    results = read_json(path)
    if results["networks"] != networks:
        raise UserError(f"{path} is of other networks than there are now; run it again with --folds_to_run {number}")
    rows = []
    for row in results["rows"]:
        arrays = {name: np.array(row["estimate"][name]) for name in ("part", "whole")}
        rows.append({**row, "estimate": Estimate(**{**row["estimate"], **arrays})})
    return rows


def missing_results(folder: Path, k: int) -> list[int]:
    """The folds of `k` that have not been run to their end."""
    return [number for number in range(k) if not results_file(folder, number).exists()]
