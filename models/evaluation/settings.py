"""Settings of an evaluation, of either stage: what it writes, and where."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from models.rpn.settings import RegionSettings
from utils.files import (
    REGION_VOLUMES_FILE,
    STAGE_1_TABLES,
    STAGE_2_TABLES,
    intervals_file,
    read_scores,
    require_writable,
    update_table,
)
from utils.settings import MAY_DIFFER, TESTS_ANEW, option
from utils.validators import LayersAction, non_negative_int, pathname

output_option = partial(option, on_resume=TESTS_ANEW)


@dataclass(frozen=True)
class Results:
    """Results."""

    more_tables: ClassVar[tuple[str, ...]] = ()  # beside `scores_file` and its intervals
    scores_dir: str = output_option(pathname, "folder of scores and predictions", "./scores")
    scores_file: str = output_option(pathname, "CSV of mean scores, a row per model", "scores.csv")
    n_predictions: int = output_option(non_negative_int, "predictions to draw", 30, shared=True)

    @property
    def tables(self) -> list[Path]:
        """All tables of scores."""
        files = (self.scores_file, intervals_file(self.scores_file), *self.more_tables)
        return [Path(self.scores_dir) / file for file in files]

    def require_writable(self, argument: str = "--scores_dir") -> None:
        """Refuse, before long work, a folder that cannot be written, and another file in the place of a table."""
        require_writable(self.scores_dir, argument)
        for path in self.tables:
            read_scores(path)

    def update(self, name: str, tables: Mapping[str, Any]) -> None:
        """Write a model's rows, a DataFrame for each table by its file."""
        for file, rows in tables.items():
            update_table(Path(self.scores_dir) / file, name, rows)


@dataclass(frozen=True)
class RPNOutputs(Results):
    """Results."""

    more_tables: ClassVar = STAGE_1_TABLES
    scores_dir: str = output_option(pathname, "folder of scores and predictions", "./rpn_scores")


@dataclass(frozen=True)
class Outputs(Results):
    """Results."""

    more_tables: ClassVar = STAGE_2_TABLES
    target_layers: tuple[str, ...] | None = output_option(
        str,
        "layers of the 3D network to draw Grad-CAM for; list prints them and ends",
        action=LayersAction,
        nargs="+",
        metavar="LAYER",
    )
    metadata: str | None = option(
        pathname,
        "table of the subjects (participants.tsv of BIDS, or a .csv), by whose columns scores are grouped",
        on_resume=MAY_DIFFER,
        metavar="FILE",
    )
    atlas: str | None = output_option(
        pathname,
        "NIfTI labels in MNI152 space: lesion volume of each region, and the region of each lesion; a .txt of the "
        "same name beside it has a line 'LABEL NAME' for each",
    )
    per_size_scores_file: str = "per_size_scores.csv"  # an option of test_strokeformer.py alone, as the maps are
    probabilities: bool = False
    uncertainty: bool = False

    @property
    def tables(self) -> list[Path]:
        files = [self.per_size_scores_file, *([REGION_VOLUMES_FILE] if self.atlas else [])]
        return [*super().tables, *(Path(self.scores_dir) / file for file in files)]

    def require_writable(self, argument: str = "--scores_dir") -> None:
        """As of all results; refuses an atlas that is none, too."""
        from data.scans.atlas import atlas_files, read_atlas

        super().require_writable(argument)
        if files := atlas_files(self.atlas):
            read_atlas(*files)


SEVERAL = "a checkpoint, or several or the folder of a cross-validation for the mean of their predictions"


@dataclass(frozen=True)
class EnsembleRegions(RegionSettings):
    """Regions; without --regions and --rpn_ckpt_path whole volumes are segmented."""

    rpn_ckpt_path: tuple[str, ...] | None = option(
        pathname,
        f"stage 1 that proposes them: {SEVERAL}",
        on_resume=MAY_DIFFER,
        exclusive="source",
        nargs="+",
        metavar="PATH",
    )


@dataclass(frozen=True)
class AllOutputs(Outputs):
    """Results."""

    per_size_scores_file: str = output_option(pathname, "CSV of scores by lesion size", "per_size_scores.csv")
    probabilities: bool = output_option(None, "write the lesion probability of each scan on its own grid", False)
    uncertainty: bool = output_option(
        None,
        "write the entropy, in bits, of its mean over the scan and its mirror image (that of --flip_average) or, with "
        "several checkpoints, over these",
        False,
    )
    bids_derivatives: str | None = output_option(
        pathname,
        "folder for the lesions and their probability as a BIDS derivative data set; by default it is not written",
        metavar="DIR",
    )
