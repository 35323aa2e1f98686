"""Both stages over the folds of a cohort: what the networks of a fold learn from, and the steps of a fold."""

from argparse import Namespace
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas as pd

from data.batches.cutting import cut_cohort
from data.batches.datamodules import ScanDataset, scan_loader
from data.files.listing import counted
from data.files.names import result_name
from data.scans.admission import Facts, admit
from data.scans.cohort import Case
from data.scans.fingerprints import check_sources, code_digest, combined, content_digest, fingerprint
from data.scans.folds import (
    Fold,
    cases_of,
    held_out,
    lesion_loads,
    make_folds,
    read_begun_folds,
    read_folds,
    usable_augmented,
    write_folds,
)
from data.scans.grid import Grid, grid_of
from data.scans.prepared import brains_in, cached_scan
from models.checkpoints import load_rpn, load_strokeformer
from models.cross_validation.results import (
    fold_name,
    has_results,
    missing_results,
    read_results,
    results_file,
    write_results,
)
from models.evaluation.proposals import evaluate_rpn
from models.evaluation.segmentation import evaluate_strokeformer
from models.precision import use_precision
from models.proposals import collect_regions, rpn_source
from models.training.fit import train_rpn, train_strokeformer
from models.training.runs import best_checkpoint, inputs_of, is_finished, is_trained, run_folder
from utils.errors import UserError
from utils.files import STAGE_1_TABLES, STAGE_2_TABLES, locked, order_rows, rows_of, score_files
from utils.provenance import open_run, require_inputs, require_settings, settings_of_results
from utils.regions.region import write_regions


@dataclass
class CrossValidation:
    """A cross-validation of the whole method.

    args, rpn_args: arguments of ``cross_validation.py``, as those of stage 2 and of stage 1.
    cases: the cohort.
    augmented: augmented scans and the subjects that each is made of.
    facts: what `admit` has seen of all scans.
    """

    args: Namespace
    rpn_args: Namespace
    cases: list[Case]
    augmented: dict[Case, set[str]]
    facts: dict[Case, Facts] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return run_folder(self.args, self.args.model_prefix)

    @property
    def cache_dir(self) -> Path:
        return self.folder / "cache"

    @property
    def grid(self) -> Grid:
        return grid_of(self.args)

    @property
    def everything(self) -> list[Case]:
        """All scans, augmented ones too."""
        return [*self.cases, *self.augmented]

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the files of all scans by the scan's name."""
        return {case.name: seen.digest for case, seen in self.facts.items()}

    def names(self, number: int) -> tuple[str, str]:
        """Names of the runs of a fold, of stage 1 and of stage 2."""
        return fold_name(self.rpn_args.model_prefix, number), fold_name(self.args.model_prefix, number)

    def folders(self, number: int) -> tuple[Path, Path]:
        rpn_name, name = self.names(number)
        return run_folder(self.rpn_args, rpn_name), run_folder(self.args, name)

    def regions_file(self, number: int) -> Path:
        return self.folder / f"regions_fold-{number}.json"

    def sides(self, fold: Fold) -> tuple[list[Case], list[Case], list[Case]]:
        """The scans of a fold: training, with the augmented ones that it may use, validation and test."""
        train, val, test = (cases_of(self.cases, subjects) for subjects in (fold.train, fold.val, fold.test))
        return train + usable_augmented(self.augmented, fold), val, test

    # --- the scans ---------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Check and prepare all scans that have not been, and refuse bad ones."""
        where = brains_in(self.cache_dir), self.args.num_workers, self.cache_dir
        self.facts = admit(self.everything, self.grid, *where)

    def cut_slices(self) -> pd.DataFrame:
        """The slices of all scans, rows of `data.batches.cutting.COLUMNS` with full paths."""
        return cut_cohort(self.everything, self.grid, self.prepare, self.folder / "slices", self.args.num_workers)

    @property
    def prepare(self):
        """From a case to its prepared scan, kept in the run's folder."""
        return partial(cached_scan, grid=self.grid, cache_dir=self.cache_dir)

    def scans_of(self, cases: list[Case]):
        return scan_loader(ScanDataset(cases, self.prepare), self.args.num_workers)

    def get_ready(self) -> tuple[list[Fold], pd.DataFrame]:
        """Do once what the folds share: prepare the scans, record the run, cut the slices; folds and slices.

        Jobs that share a cross-validation wait for the first of them.
        """
        with locked(self.folder / "folds.json"):
            self.admit()
            folds = self.choose_folds()
            self.begin(folds)
            return folds, self.cut_slices()

    # --- a begun run -------------------------------------------------------------------------------------

    def check_settings(self) -> None:
        """Refuse, before any scan is read, folds that cannot be, and other settings than a begun run has."""
        if is_trained(self.folder):
            raise UserError(f"{self.folder} holds a training; choose another --model_prefix for the cross-validation")
        if self.is_begun(self.args.k):
            require_settings(self.folder, vars(self.args))
        k = self.k
        if beyond := [number for number in self.args.folds_to_run or [] if number >= k]:
            raise UserError(f"--folds_to_run {beyond[0]}: there are {k} folds, from 0 to {k - 1}")
        if self.known_folds() is None:
            held_out(len({case.subject for case in self.cases}), self.args.k, self.args.splits)

    @property
    def k(self) -> int:
        """The number of folds."""
        return self.args.k if (known := self.known_folds()) is None else len(known)

    def known_folds(self) -> list[Fold] | None:
        """The folds of ``--folds`` or of the run as it was begun; None where nothing has been trained yet."""
        subjects = {case.subject for case in self.cases}
        if self.args.folds:
            return read_folds(self.args.folds, subjects)
        if self.is_begun(self.args.k):
            return read_begun_folds(self.folder / "folds.json", subjects)
        return None

    def choose_folds(self) -> list[Fold]:
        """The folds that are known or, without them, new ones."""
        if (folds := self.known_folds()) is not None:
            return folds
        loads = lesion_loads({case: self.facts[case].lesion for case in self.cases})
        return make_folds(loads, self.args.k, self.args.splits, self.args.seed)

    def is_begun(self, k: int) -> bool:
        """Whether a network of the first `k` folds has learned anything."""
        recorded = (self.folder / "folds.json").exists()
        return recorded and any(is_trained(folder) for number in range(k) for folder in self.folders(number))

    def begin(self, folds: list[Fold]) -> None:
        """Record the run, or refuse a begun one that is of other settings, folds or data, before any work.

        A begun network belongs to what it learns from. A scan that it never saw may change or be new: then the fold is
        tested anew.
        """
        open_run(self.folder, vars(self.args), {"folds.json": digest_of(folds)}, self.is_begun(len(folds)))
        if self.augmented:
            check_sources(Path(self.args.augmented_dir), self.digests)
        for number, fold in enumerate(folds):
            rpn_folder, folder = self.folders(number)
            if is_trained(rpn_folder):
                require_inputs(rpn_folder, self.inputs(fold))
            if is_trained(folder):
                finished = is_finished(rpn_folder, self.rpn_args.max_epochs)
                require_inputs(folder, self.inputs(fold, self.rpn_digest(number) if finished else "yet to be trained"))
        write_folds(self.folder / "folds.json", folds, seed=self.args.seed, k=self.args.k, splits=self.args.splits)

    def inputs(self, fold: Fold, proposer: str | None = None) -> dict[str, str]:
        """What the networks of a fold learn from; `proposer`, the digest of its stage 1, for stage 2 alone."""
        train, val, _ = self.sides(fold)
        return inputs_of(train, val, self.digests, proposer)

    def networks(self, number: int) -> dict[str, str]:
        """The digests of both networks of a fold."""
        _, folder = self.folders(number)
        return {"rpn": self.rpn_digest(number), "strokeformer": content_digest([best_checkpoint(folder)])}

    def rpn_digest(self, number: int) -> str:
        """The digest of the stage 1 that proposes the regions of a fold."""
        rpn_folder, folder = self.folders(number)
        return fingerprint({"rpn": [best_checkpoint(rpn_folder)]}, folder / "fingerprints.json")["rpn"]

    # --- a fold ------------------------------------------------------------------------------------------

    def run_fold(self, number: int, folds: list[Fold], slices: pd.DataFrame) -> None:
        """The four steps of one fold, whose scores are kept for `results`; nothing, where they are there already.

        Args:
            folds, slices: what `get_ready` returns.
        """
        use_precision(self.args.precision)  # a fold may run in a process of its own
        fold = folds[number]
        print(
            f"Fold {number + 1} of {len(folds)}: {len(fold.train)} training, {len(fold.val)} validation and "
            f"{len(fold.test)} test subjects"
        )
        if self.is_tested(number, fold):
            print(f"Fold {number + 1} is trained and tested already")
        else:
            results_file(self.folder, number).unlink(missing_ok=True)  # the tables are about to change
            self._train_and_test(number, fold, slices)

    def _train_and_test(self, number: int, fold: Fold, slices: pd.DataFrame) -> None:
        train, val, test = self.sides(fold)
        rpn_name, name = self.names(number)
        if self.augmented:
            used = len(train) - len(cases_of(self.cases, fold.train))
            print(f"{used} of {len(self.augmented)} augmented scans are made of training subjects alone and used")

        # 1. Train the RPN on the fold's slices.
        train_slices, val_slices = (slices[slices.volume.isin([c.name for c in part])] for part in (train, val))
        rpn = load_rpn(train_rpn(self.rpn_args, train_slices, val_slices, rpn_name, self.inputs(fold)))

        # 2. Propose regions and save them.
        regions = collect_regions(rpn_source(rpn, tuple(self.args.roi_size)), self.scans_of(train + val + test))
        write_regions(self.regions_file(number), regions)

        # 3. Train StrokeFormer on the regions.
        inputs = self.inputs(fold, self.rpn_digest(number))
        best = train_strokeformer(self.args, train, val, regions, self.cache_dir, name, inputs)
        model = load_strokeformer(best)

        # 4. Test both stages.
        rpn_scores = evaluate_rpn(rpn, self.scans_of(test), len(test), self.rpn_args, rpn_name)
        scores = evaluate_strokeformer(
            model, test, self.scans_of(test), lambda scan: regions[scan.name], self.args, name
        )
        rows = [
            {"fold": number, "stage": stage, "score": score, "estimate": estimate}
            for stage, found in (("rpn", rpn_scores), ("strokeformer", scores))
            for score, estimate in found.items()
        ]
        write_results(self.folder, number, rows, *self.tested(number, fold))

    def is_tested(self, number: int, fold: Fold) -> bool:
        """Whether all that a fold leaves is there already, of the same networks, scans, settings and code."""
        epochs = self.rpn_args.max_epochs, self.args.max_epochs
        if not all(map(is_finished, self.folders(number), epochs)):
            return False
        same = has_results(self.folder, number, *self.tested(number, fold))
        return same and self.has_outputs(number, self.sides(fold)[2])

    def tested(self, number: int, fold: Fold) -> tuple[dict[str, str], str, str]:
        """What tells the results of a fold's test from others: `models.cross_validation.results.write_results`."""
        return self.networks(number), self.test_digest(fold), self.tables_digest(number)

    def test_digest(self, fold: Fold) -> str:
        """Of what the results of a fold's test depend on beside its networks."""
        scans = {case.name: self.digests[case.name] for case in self.sides(fold)[2]}
        settings = repr(sorted(settings_of_results(vars(self.args)).items()))
        return combined({**scans, "settings": settings, "code": code_digest("data", "models", "utils")})

    def tables_digest(self, number: int) -> str:
        """Of a fold's rows in all tables of scores: another test of the same name would replace them."""
        of_stages = zip(self.tables, self.names(number), strict=True)
        return combined({f"{name}/{path.name}": rows_of(path, name) for paths, name in of_stages for path in paths})

    def has_outputs(self, number: int, test: list[Case]) -> bool:
        """Whether regions and predictions of a fold are where they were written."""
        folder = Path(self.args.scores_dir) / self.names(number)[1] / "predictions"
        files = [self.regions_file(number), *(folder / result_name(case.scan, "prediction") for case in test)]
        return all(file.exists() for file in files)

    @property
    def tables(self) -> tuple[list[Path], list[Path]]:
        """All tables of scores of stage 1 and of stage 2."""
        args, rpn_args = self.args, self.rpn_args
        rpn_files = score_files(rpn_args.scores_file, *STAGE_1_TABLES)
        files = score_files(args.scores_file, *STAGE_2_TABLES, args.per_size_scores_file)
        return [Path(rpn_args.scores_dir) / file for file in rpn_files], [Path(args.scores_dir) / f for f in files]

    def order_tables(self) -> None:
        """Put the folds' rows in all tables of scores into their order, whichever fold ended first."""
        for files, names in zip(self.tables, zip(*map(self.names, range(self.k)), strict=True), strict=True):
            for file in files:
                order_rows(file, names)

    def missing(self) -> list[int]:
        """The folds that have not been run to their end."""
        return missing_results(self.folder, self.k)

    def results(self) -> list[dict]:
        """A row (fold, stage, score, estimate) for every score of all folds; refuses where one has not been run."""
        if missing := self.missing():
            raise UserError(
                f"{counted(len(missing), 'fold')} of {self.folder} yet to run; give the same command with "
                f"--folds_to_run {' '.join(map(str, missing))}"
            )
        return [row for number in range(self.k) for row in read_results(self.folder, number, self.networks(number))]


def digest_of(folds: list[Fold]) -> str:
    return combined({str(number): repr(fold) for number, fold in enumerate(folds)})
