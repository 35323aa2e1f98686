"""The sections that reports are made of, from the tables, pictures and records that an evaluation leaves."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from data.files.names import result_name
from data.scans.cohort import Case
from report.charts import plot_bland_altman, plot_dice_by_volume, plot_recall_by_volume, plot_scores, plot_volumes
from report.page import Section, chart, listing, picture, table
from report.scans import ShownScan, ranked, show_scan
from utils.files import STAGE_1_TABLES, STAGE_2_TABLES

PER_SCAN_FILE, PER_LESION_FILE, VOLUMES_FILE = STAGE_2_TABLES
RPN_PER_LESION_FILE = STAGE_1_TABLES[1]
# The scores that are charted; all lie in [0, 1].
STAGE_1_SCORES = ["lesion_coverage", "lesion_recall", "proposed_fraction"]
STAGE_2_SCORES = [
    *["dice", "precision", "recall", "lesion_f1_isles", "lesion_f1_atlas"],
    *["lesion_precision_isles", "lesion_recall_isles"],
]
INTERVAL_NOTE = "Bars are 95 % intervals by the bootstrap over scans."
KINDS_NOTE = (
    "In the pictures what was predicted is vermilion and the true lesion outlined in green; slices through missed and "
    "false lesions come first. In the views green is lesion that was found, blue lesion that was missed, vermilion "
    "what was predicted and is none; a click moves the three planes."
)
PREDICTION_NOTE = "What was predicted is vermilion. A click into a view moves its three planes."


def read_rows(path: Path, names: Iterable[str]) -> pd.DataFrame:
    """The rows of some models in a table of scores."""
    rows = pd.read_csv(path, dtype={"found": "boolean"})
    return rows[rows.model_name.isin(list(names))].reset_index(drop=True)


def read_scans(scores_dir: Path, names: Sequence[str], scored: bool) -> pd.DataFrame:
    """A row a scan: its volumes and, where there are masks, its scores."""
    volumes = read_rows(scores_dir / VOLUMES_FILE, names)
    if not scored:
        return volumes
    return volumes.merge(read_rows(scores_dir / PER_SCAN_FILE, names), on=["model_name", "scan"])


# --- scores --------------------------------------------------------------------------------------------


def scores(title: str, scores: pd.DataFrame, charted: list[str], note: str = "") -> Section:
    """Scores with their intervals, the main ones as a chart.

    Args:
        scores: columns ``score``, ``mean``, ``low`` and ``high``; ``folds``, the list of the folds' scores, where there
            are folds; others go into the table alone.
    """
    main = scores[scores.score.isin(charted)]
    shown = main.drop(columns=["folds", "stage"], errors="ignore")
    return Section(title, [chart(plot_scores(main), title), table(shown)], INTERVAL_NOTE + note)


def recall(title: str, lesions: pd.DataFrame, seed: int, note: str, before: Sequence[Markup] = ()) -> Section:
    """The share of the lesions of each size that are found; nothing where volumes are unknown.

    Args:
        lesions: columns ``scan``, ``volume_cm3`` and ``found``.
        before: charts that come first.
    """
    known = lesions.dropna(subset="volume_cm3")
    found = [chart(plot_recall_by_volume(known, seed), "Lesions found by their volume")] if len(known) else []
    return Section(title, [*before, *found], note)


def volume_charts(scans: pd.DataFrame) -> list[Markup]:
    """Dice by volume, and predicted against true volume, of scored scans of `read_scans` with known voxel sizes."""
    known = scans.dropna(subset="true_cm3")
    sick = known[known.true_cm3 > 0]
    charts = [chart(plot_dice_by_volume(sick), "Dice by lesion volume")] if len(sick) else []
    return charts + ([chart(plot_bland_altman(known), "Predicted against true volume")] if len(known) else [])


def volumes(scans: pd.DataFrame) -> Section:
    """How much lesion was predicted where no mask says what is true."""
    known = scans.predicted_cm3.dropna()
    total = scans[["scan", "predicted_lesions", "predicted_cm3"]].sort_values("predicted_lesions", ascending=False)
    charts = [chart(plot_volumes(known), "Predicted volumes")] if len(known) else []
    return Section("Volumes", [*charts, table(total)], "There are no masks to compare with.")


# --- scans ---------------------------------------------------------------------------------------------


def scans(
    scores_dir: Path, scans: pd.DataFrame, lesions: pd.DataFrame, cases: list[Case], note: str = KINDS_NOTE
) -> Section:
    """The worst, the median and the best of the scans of `read_scans`, with a view each.

    Args:
        lesions: rows of ``per_lesion_scores.csv``; none without masks.
    """
    by_name = {case.name: case for case in cases}
    parts = []
    for rank, row in ranked(scans[scans.scan.isin(by_name)]).items():  # a scan may be gone since it was tested
        case = by_name[row.scan]
        those = lesions[(lesions.scan == row.scan) & (lesions.model_name == row.model_name)]
        prediction = scores_dir / row.model_name / "predictions" / result_name(case.scan, "prediction")
        if prediction.exists():
            parts += show_scan(ShownScan(rank, case, row, those, prediction))
    return Section("Scans", parts, note)


def all_scans(scans: pd.DataFrame) -> Section:
    """The scores of every scan, the worst first."""
    columns = ["dice", "lesion_f1_isles", "false_lesions_isles", "hd95", "true_lesions", "predicted_lesions"]
    columns += ["true_cm3", "predicted_cm3"]
    return Section("All scans", [table(scans.sort_values("dice")[["scan", *columns]])], folded=True)


# --- how it came about ---------------------------------------------------------------------------------


def slices(title: str, folder: Path, note: str, folded: bool = False) -> Section:
    """All pictures of slices in a folder."""
    shown = [picture(file, file.stem, small=True) for file in sorted(folder.glob("*.png"))]
    return Section(title, shown, note, folded)


def calibration(folders: Iterable[Path]) -> Section:
    """The coverage curves of the trainings of stage 1 in some folders."""
    note = "What stage 1 covers of the validation scans' lesions against what it proposes of the brain."
    return Section("Calibration of stage 1", _pictures("calibration.png", folders), note)


def training(folders: Iterable[Path]) -> Section:
    return Section("Training", _pictures("loss_curves.png", folders), folded=True)


def _pictures(file: str, folders: Iterable[Path]) -> list[Markup]:
    """A picture of each training that has it."""
    return [picture(folder / file, f"{folder.name}: {file}") for folder in folders if (folder / file).exists()]


def settings(run: dict) -> Section:
    """What made the result: a ``run.json``."""
    facts = {
        "command": " ".join(map(str, run["command"])),
        "recipes": ", ".join(run["recipes"]),
        "started": run["started"],
        "git commit": run["git_commit"],
        "Python": run["python"],
        **run["versions"],
    }
    return Section("Settings", [listing(facts), listing(run["settings"])], folded=True)
