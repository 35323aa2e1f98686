"""The reports: of stage 1 (``test_rpn.py``), of stage 2 (``test_strokeformer.py``) and of a cross-validation."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from data.scans.cohort import Case
from models.training.runs import folder_of
from report.page import Section, write_page
from report.sections import (
    PER_LESION_FILE,
    PREDICTION_NOTE,
    RPN_PER_LESION_FILE,
    STAGE_1_SCORES,
    STAGE_2_SCORES,
    all_scans_section,
    calibration_section,
    found_section,
    read_rows,
    read_scans,
    scans_section,
    scores_section,
    settings_section,
    slices_section,
    training_section,
    volume_charts,
    volumes_section,
)
from utils.files import intervals_file, read_json
from utils.regions.measures import COVERED_SHARE

REPORT_FILE = "report.html"
FOUND_NOTE = "A lesion is found if one of its voxels is predicted; lesions are 26-connected."
FOLDS_NOTE = " Ticks are the scores of single folds."
COVERED_NOTE = "A lesion is found if half of its voxels or more lie inside the proposed regions."


def report_strokeformer(args: Namespace, name: str, cases: list[Case]) -> Path:
    """Write ``report.html`` into the folder of an evaluation of stage 2, beside its predictions; returns where it is.

    Args:
        args: of ``test_strokeformer.py``, whose tables are written.
        name: of the model in them.
    """
    folder = Path(args.scores_dir) / name
    runs = [folder_of(path) for path in (*(args.rpn_ckpt_path or []), *args.ckpt_path)]
    findings = _scored(args, name, cases) if args.masks else _unscored(args, name, cases)
    end = [calibration_section(runs), training_section(runs), settings_section(read_json(folder / "run.json"))]
    what = "checkpoint" if len(args.ckpt_path) == 1 else "checkpoints"
    facts = {"scans": len(cases), what: ", ".join(args.ckpt_path)}
    return write_page(folder / REPORT_FILE, f"{name}: segmentation", facts, [*findings, *end])


def report_rpn(args: Namespace, name: str, n_scans: int) -> Path:
    """Write ``report.html`` into the folder of an evaluation of stage 1; `args` are those of ``test_rpn.py``."""
    folder, run = Path(args.scores_dir) / name, folder_of(args.ckpt_path)
    sections = [
        scores_section("Scores", _intervals(args, name), STAGE_1_SCORES),
        found_section("Lesions by volume", _covered(args.scores_dir, [name]), args.seed, COVERED_NOTE),
        slices_section("Misses", folder / "misses", "The slices in which the regions leave out most lesion."),
        slices_section("Slices", folder / "predictions", "What was detected and proposed in some slices.", folded=True),
        calibration_section([run]),
        training_section([run]),
        settings_section(read_json(folder / "run.json")),
    ]
    facts = {"scans": n_scans, "checkpoint": args.ckpt_path}
    return write_page(folder / REPORT_FILE, f"{name}: region proposals", facts, sections)


def report_cross_validation(validation, results: list[dict], summary: pd.DataFrame) -> Path:
    """Write ``<model_prefix>_report.html`` beside the summary of a cross-validation, and return where it is.

    Args:
        validation: a `models.cross_validation.folds.CrossValidation` whose folds have all been run.
        results: of its folds.
        summary: what `utils.scores.tables.summarise_folds` returns of these.
    """
    args, numbers = validation.args, range(validation.k)
    rpn_names, names = zip(*(validation.names(number) for number in numbers), strict=True)
    rpn_runs, runs = zip(*(validation.folders(number) for number in numbers), strict=True)
    by_fold = _with_folds(summary, results)
    lesions = read_rows(Path(args.scores_dir) / PER_LESION_FILE, names)
    scans = read_scans(Path(args.scores_dir), names, scored=True)
    covered = _covered(validation.rpn_args.scores_dir, rpn_names)
    sections = [
        scores_section("Segmentation", by_fold[by_fold.stage == "strokeformer"], STAGE_2_SCORES, FOLDS_NOTE),
        scores_section("Regions", by_fold[by_fold.stage == "rpn"], STAGE_1_SCORES, FOLDS_NOTE),
        _by_volume(args, scans, lesions),
        found_section("Lesions inside the regions", covered, args.seed, COVERED_NOTE),
        scans_section(Path(args.scores_dir), scans, lesions, validation.cases),
        all_scans_section(scans),
        calibration_section(rpn_runs),
        training_section([*rpn_runs, *runs]),
        settings_section(read_json(validation.folder / "run.json")),
    ]
    path = Path(args.scores_dir) / f"{args.model_prefix}_{REPORT_FILE}"
    facts = {"folds": validation.k, "test scans": len(scans), "subjects": len({c.subject for c in validation.cases})}
    return write_page(path, f"{args.model_prefix}: cross-validation", facts, sections)


# --- findings ------------------------------------------------------------------------------------------


def _scored(args: Namespace, name: str, cases: list[Case]) -> list[Section]:
    """What the scores of an evaluation of stage 2 say."""
    scores_dir = Path(args.scores_dir)
    lesions, scans = read_rows(scores_dir / PER_LESION_FILE, [name]), read_scans(scores_dir, [name], scored=True)
    return [
        scores_section("Scores", _intervals(args, name), STAGE_2_SCORES),
        _by_volume(args, scans, lesions),
        scans_section(scores_dir, scans, lesions, cases),
        all_scans_section(scans),
    ]


def _by_volume(args: Namespace, scans: pd.DataFrame, lesions: pd.DataFrame) -> Section:
    true = lesions[lesions.kind == "lesion"]
    return found_section("Lesions by volume", true, args.seed, FOUND_NOTE, volume_charts(scans))


def _unscored(args: Namespace, name: str, cases: list[Case]) -> list[Section]:
    """What there is to say of scans without masks."""
    scans = read_scans(Path(args.scores_dir), [name], scored=False)
    none = pd.DataFrame(columns=["model_name", "scan", "kind", "slice", "voxels", "found"])
    return [volumes_section(scans), scans_section(Path(args.scores_dir), scans, none, cases, PREDICTION_NOTE)]


def _intervals(args: Namespace, name: str) -> pd.DataFrame:
    """The scores of a model over all its scans, with intervals."""
    rows = read_rows(Path(args.scores_dir) / intervals_file(args.scores_file), [name])
    return rows[rows["size"].isna()][["score", "mean", "low", "high", "scans"]]


def _covered(scores_dir: str, names: Iterable[str]) -> pd.DataFrame:
    """The lesions that stage 1 was tested on, with `found` by the regions."""
    lesions = read_rows(Path(scores_dir) / RPN_PER_LESION_FILE, names)
    return lesions.assign(found=lesions.covered >= COVERED_SHARE)


def _with_folds(summary: pd.DataFrame, results: list[dict]) -> pd.DataFrame:
    """The summary with the score of each fold."""
    rows = pd.DataFrame(results)
    folds = rows.assign(folds=[estimate.mean for estimate in rows.estimate]).groupby(["stage", "score"]).folds.agg(list)
    return summary.drop(columns="folds").join(folds, on=["stage", "score"])
