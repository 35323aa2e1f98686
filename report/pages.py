"""The reports: of stage 1 (``test_rpn.py``), of stage 2 (``test_strokeformer.py``) and of a cross-validation."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from data.scans.cohort import Case
from models.cross_validation.validation import CrossValidation
from models.evaluation.settings import Outputs, RPNOutputs
from models.training.runs import folder_of
from report import sections
from report.page import Section, write_page
from utils.files import intervals_file, read_json
from utils.scores.proposals import COVERED_SHARE

REPORT_FILE = "report.html"
FOUND_NOTE = "A lesion is found if one of its voxels is predicted; lesions are 26-connected."
FOLDS_NOTE = " Ticks are the scores of single folds."
COVERED_NOTE = "A lesion is found if half of its voxels or more lie inside the proposed regions."


def report_strokeformer(
    name: str,
    cases: list[Case],
    outputs: Outputs,
    seed: int,
    checkpoints: Sequence[str],
    rpn_checkpoints: Sequence[str] = (),
) -> Path:
    """Write ``report.html`` into the folder of an evaluation of stage 2, beside its predictions; returns its path.

    Args:
        name: of the model in the tables of `outputs`.
        cases: that were segmented; those with masks were scored.
        seed: of the intervals.
    """
    folder = Path(outputs.scores_dir) / name
    runs = [folder_of(path) for path in (*rpn_checkpoints, *checkpoints)]
    scored = any(case.mask is not None for case in cases)
    findings = _scored(outputs, name, cases, seed) if scored else _unscored(outputs, name, cases)
    run = read_json(folder / "run.json")
    end = [sections.calibration(runs), sections.training(runs), sections.settings(run)]
    what = "checkpoint" if len(checkpoints) == 1 else "checkpoints"
    facts = {"scans": len(cases), what: ", ".join(checkpoints)}
    return write_page(folder / REPORT_FILE, f"{name}: segmentation", facts, [*findings, *end])


def report_rpn(name: str, n_scans: int, outputs: RPNOutputs, seed: int, checkpoint: str) -> Path:
    """Write ``report.html`` into the folder of an evaluation of stage 1; arguments as for `report_strokeformer`."""
    folder, run = Path(outputs.scores_dir) / name, folder_of(checkpoint)
    parts = [
        sections.scores("Scores", _intervals(outputs, name), sections.STAGE_1_SCORES),
        sections.recall("Lesions by volume", _covered(outputs.scores_dir, [name]), seed, COVERED_NOTE),
        sections.slices("Misses", folder / "misses", "The slices in which the regions leave out most lesion."),
        sections.slices(
            "Slices", folder / "predictions", "What was detected and proposed in some slices.", folded=True
        ),
        sections.calibration([run]),
        sections.training([run]),
        sections.settings(read_json(folder / "run.json")),
    ]
    facts = {"scans": n_scans, "checkpoint": checkpoint}
    return write_page(folder / REPORT_FILE, f"{name}: region proposals", facts, parts)


def report_cross_validation(validation: CrossValidation, results: list[dict], summary: pd.DataFrame) -> Path:
    """Write ``<model_prefix>_report.html`` beside the summary of a cross-validation; returns its path.

    Args:
        results: of all its folds (`models.cross_validation.folds.all_results`).
        summary: of these (`utils.scores.intervals.summarise_folds`).
    """
    settings, k = validation.settings, len({row["fold"] for row in results})
    rpn_names, names = zip(*(validation.names(number) for number in range(k)), strict=True)
    rpn_runs, runs = zip(*(validation.folders(number) for number in range(k)), strict=True)
    scores_dir, cases = Path(settings.outputs.scores_dir), validation.cohort.cases
    by_fold = _with_folds(summary, results)
    lesions = sections.read_rows(scores_dir / sections.PER_LESION_FILE, names)
    scans = sections.read_scans(scores_dir, names, scored=True)
    covered = _covered(settings.rpn_outputs.scores_dir, rpn_names)
    parts = [
        sections.scores("Segmentation", by_fold[by_fold.stage == "strokeformer"], sections.STAGE_2_SCORES, FOLDS_NOTE),
        sections.scores("Regions", by_fold[by_fold.stage == "rpn"], sections.STAGE_1_SCORES, FOLDS_NOTE),
        _by_volume(scans, lesions, settings.seed),
        sections.recall("Lesions inside the regions", covered, settings.seed, COVERED_NOTE),
        sections.scans(scores_dir, scans, lesions, cases),
        sections.all_scans(scans),
        sections.calibration(rpn_runs),
        sections.training([*rpn_runs, *runs]),
        sections.settings(read_json(validation.folder / "run.json")),
    ]
    prefix = settings.training.run.model_prefix
    facts = {"folds": k, "test scans": len(scans), "subjects": len({case.subject for case in cases})}
    return write_page(scores_dir / f"{prefix}_{REPORT_FILE}", f"{prefix}: cross-validation", facts, parts)


# --- findings ------------------------------------------------------------------------------------------


def _scored(outputs: Outputs, name: str, cases: list[Case], seed: int) -> list[Section]:
    """What the scores of an evaluation of stage 2 say."""
    scores_dir = Path(outputs.scores_dir)
    lesions, scans = (
        sections.read_rows(scores_dir / sections.PER_LESION_FILE, [name]),
        sections.read_scans(scores_dir, [name], scored=True),
    )
    return [
        sections.scores("Scores", _intervals(outputs, name), sections.STAGE_2_SCORES),
        _by_volume(scans, lesions, seed),
        sections.scans(scores_dir, scans, lesions, cases),
        sections.all_scans(scans),
    ]


def _by_volume(scans: pd.DataFrame, lesions: pd.DataFrame, seed: int) -> Section:
    true = lesions[lesions.kind == "lesion"]
    return sections.recall("Lesions by volume", true, seed, FOUND_NOTE, sections.volume_charts(scans))


def _unscored(outputs: Outputs, name: str, cases: list[Case]) -> list[Section]:
    """What there is to say of scans without masks."""
    scores_dir = Path(outputs.scores_dir)
    scans = sections.read_scans(scores_dir, [name], scored=False)
    none = pd.DataFrame(columns=["model_name", "scan", "kind", "slice", "voxels", "found"])
    return [
        sections.volumes(scans),
        sections.scans(scores_dir, scans, none, cases, sections.PREDICTION_NOTE),
    ]


def _intervals(outputs: Outputs | RPNOutputs, name: str) -> pd.DataFrame:
    """The scores of a model over all its scans, with intervals."""
    rows = sections.read_rows(Path(outputs.scores_dir) / intervals_file(outputs.scores_file), [name])
    return rows[rows["size"].isna()][["score", "mean", "low", "high", "scans"]]


def _covered(scores_dir: str, names: Iterable[str]) -> pd.DataFrame:
    """The lesions that stage 1 was tested on, with `found` by the regions."""
    lesions = sections.read_rows(Path(scores_dir) / sections.RPN_PER_LESION_FILE, names)
    return lesions.assign(found=lesions.covered >= COVERED_SHARE)


def _with_folds(summary: pd.DataFrame, results: list[dict]) -> pd.DataFrame:
    """The summary with the score of each fold."""
    rows = pd.DataFrame(results)
    folds = rows.assign(folds=[estimate.mean for estimate in rows.estimate]).groupby(["stage", "score"]).folds.agg(list)
    return summary.drop(columns="folds").join(folds, on=["stage", "score"])
