"""A cross-validation of both stages: its scans, its folds, and where everything of it lies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data.batches.datamodules import scan_loader
from data.scans.admission import Facts
from data.scans.cohort import Case
from data.scans.folds import Fold, cases_of, usable_augmented
from data.scans.open import Cohort
from models.cross_validation.results import fold_name
from models.cross_validation.settings import CrossValidationSettings
from models.training.runs import run_folder


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
        runs = self.settings.rpn.run, self.settings.training.run
        rpn_name, name = (fold_name(run.model_prefix, number) for run in runs)
        return rpn_name, name

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
        parts = (fold.train, fold.val, fold.test)
        train, val, test = (cases_of(self.cohort.cases, subjects) for subjects in parts)
        return train + usable_augmented(self.origins, fold), val, test

    def scans_of(self, cases: list[Case]):
        """A loader of prepared scans."""
        return scan_loader(cases, self.cohort.prepare, self.settings.num_workers)
