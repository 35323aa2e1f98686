"""The reports: of stage 1 (``test_rpn.py``), of stage 2 (``test_strokeformer.py``) and of a cross-validation."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from data.scans.cohort import Case
from models.cross_validation.state import CrossValidation
from models.evaluation.segmentation import PER_GROUP_FILE, PER_LESION_FILE, VOLUMES_FILE, read_rows, read_scans
from models.evaluation.settings import Outputs, RPNOutputs
from models.training.runs import folder_of
from report.charts import plot_bland_altman, plot_dice_by_volume, plot_recall_by_volume, plot_scores, plot_volumes
from report.page import Section, chart, listing, picture, table, write_page
from report.places import lesion_map
from report.scans import show_scans
from utils.files import STAGE_1_TABLES, intervals_file, read_json
from utils.scores.proposals import COVERED_SHARE

REPORT_FILE = "report.html"
RPN_PER_LESION_FILE = STAGE_1_TABLES[1]
# The scores that are charted; all lie in [0, 1]. The others are in mm, cm3 and lesions, and in the table alone.
STAGE_1_SCORES = ["lesion_coverage", "lesion_recall", "proposed_fraction"]
STAGE_2_SCORES = [
    *["dice", "precision", "recall", "lesion_f1_isles", "lesion_f1_atlas"],
    *["lesion_f1_isles26", "lesion_precision_isles26", "lesion_recall_isles26"],
    *["pr_auc", "surface_dice_1mm", "surface_dice_3mm"],
]
UNCHARTED = ["hd95", "assd", "volume_difference", "lesion_count_difference"]
MOST_DRAWN = 12  # subgroups that a chart has room for, say of the centres
SUBGROUPS_NOTE = (
    "Where lesions are grouped the Dice is the mean over lesions, else over scans. Bars are 95 % intervals by the "
    "bootstrap over scans; a group of few scans says little."
)


def report_strokeformer(
    name: str,
    cases: list[Case],
    outputs: Outputs,
    seed: int,
    checkpoints: Sequence[str],
    rpn_checkpoints: Sequence[str],
) -> Path:
    """Write ``report.html`` into the folder of an evaluation of stage 2, beside its predictions; returns its path.

    `name` is that of the model in the tables of `outputs`; those of the `cases` that have masks were scored.
    """
    scores_dir, folder = Path(outputs.scores_dir), Path(outputs.scores_dir) / name
    if any(case.mask is not None for case in cases):
        lesions = read_rows(scores_dir / PER_LESION_FILE, [name])
        scans = read_scans(scores_dir, [name])
        findings = [
            _scores("Scores", _intervals(outputs, name), STAGE_2_SCORES),
            _by_volume(scans, lesions, seed),
            _subgroups(scores_dir, name),
            lesion_map(scores_dir, [name]),
            show_scans(scores_dir, scans, lesions, cases),
            _all_scans(scans),
        ]
    else:
        scans = read_rows(scores_dir / VOLUMES_FILE, [name])
        findings = [_volumes(scans), lesion_map(scores_dir, [name]), show_scans(scores_dir, scans, None, cases)]
    origin = _origin([folder_of(path) for path in (*rpn_checkpoints, *checkpoints)], folder / "run.json")
    what = "checkpoint" if len(checkpoints) == 1 else "checkpoints"
    facts = {"scans": len(cases), what: ", ".join(checkpoints)}
    return write_page(folder / REPORT_FILE, f"{name}: segmentation", facts, [*findings, *origin])


def report_rpn(name: str, n_scans: int, outputs: RPNOutputs, seed: int, checkpoint: str) -> Path:
    """Write ``report.html`` into the folder of an evaluation of stage 1; arguments as for `report_strokeformer`."""
    folder = Path(outputs.scores_dir) / name
    parts = [
        _scores("Scores", _intervals(outputs, name), STAGE_1_SCORES),
        _covered("Lesions by volume", outputs.scores_dir, [name], seed),
        _slices("Misses", folder / "misses", "The slices in which the regions leave out most lesion."),
        _slices("Slices", folder / "predictions", "What was detected and proposed in some slices.", folded=True),
        *_origin([folder_of(checkpoint)], folder / "run.json"),
    ]
    facts = {"scans": n_scans, "checkpoint": checkpoint}
    return write_page(folder / REPORT_FILE, f"{name}: region proposals", facts, parts)


def report_cross_validation(cv: CrossValidation, results: list[dict], summary: pd.DataFrame) -> Path:
    """Write ``<model_prefix>_report.html`` beside the summary of a cross-validation; returns its path.

    `results` are those of `models.cross_validation.folds.all_results`, `summary` is made by `summarise_folds`.
    """
    settings, rows = cv.settings, pd.DataFrame(results)
    k, seed, prefix = rows.fold.nunique(), settings.seed, settings.training.run.model_prefix
    rpn_names, names = zip(*map(cv.names, range(k)), strict=True)
    rpn_runs, runs = zip(*map(cv.folders, range(k)), strict=True)
    scores_dir, cases = Path(settings.outputs.scores_dir), cv.cohort.cases
    folds = rows.assign(folds=[estimate.mean for estimate in rows.estimate]).groupby(["stage", "score"]).folds.agg(list)
    by_fold = summary.drop(columns="folds").join(folds, on=["stage", "score"])
    stage_1, stage_2 = (by_fold[by_fold.stage == stage] for stage in ("rpn", "strokeformer"))
    ticks = " Ticks are the scores of single folds."
    lesions = read_rows(scores_dir / PER_LESION_FILE, names)
    scans = read_scans(scores_dir, names)
    parts = [
        _scores("Segmentation", stage_2, STAGE_2_SCORES, ticks),
        _scores("Regions", stage_1, STAGE_1_SCORES, ticks),
        _by_volume(scans, lesions, seed),
        _subgroups(scores_dir, prefix),
        _covered("Lesions inside the regions", settings.rpn_outputs.scores_dir, rpn_names, seed),
        lesion_map(scores_dir, names),
        show_scans(scores_dir, scans, lesions, cases),
        _all_scans(scans),
        *_origin([*rpn_runs, *runs], cv.folder / "run.json"),
    ]
    facts = {"folds": k, "test scans": len(scans), "subjects": len(cv.subjects)}
    return write_page(scores_dir / f"{prefix}_{REPORT_FILE}", f"{prefix}: cross-validation", facts, parts)


def _intervals(outputs: Outputs | RPNOutputs, name: str) -> pd.DataFrame:
    """The scores of a model over all its scans, with intervals."""
    rows = read_rows(Path(outputs.scores_dir) / intervals_file(outputs.scores_file), [name])
    return rows[rows["size"].isna()][["score", "mean", "low", "high", "scans"]]


def _scores(title: str, scores: pd.DataFrame, charted: list[str], note: str = "") -> Section:
    """The `charted` ones of the scores as `plot_scores` has them, and the table of these and of `UNCHARTED`."""
    shown = scores[scores.score.isin([*charted, *UNCHARTED])].drop(columns=["folds", "stage"], errors="ignore")
    drawn = scores[scores.score.isin(charted)].dropna(subset="mean")
    note = f"Bars are 95 % intervals by the bootstrap over scans. The last column counts the scans with a score.{note}"
    return Section(title, [chart(plot_scores(drawn), title), table(shown)], note)


def _by_volume(scans: pd.DataFrame, lesions: pd.DataFrame, seed: int) -> Section:
    """Dice by volume, predicted against true volume, and the share of the lesions of each size that are found."""
    known = scans.dropna(subset="true_cm3")
    sick = known[known.true_cm3 > 0]
    charts = [chart(plot_dice_by_volume(sick), "Dice by lesion volume")] if len(sick) else []
    charts += [chart(plot_bland_altman(known), "Predicted against true volume")] if len(known) else []
    charts += _recall(lesions[lesions.kind == "lesion"], seed)
    note = "A lesion is found if one of its voxels is predicted; lesions are 26-connected."
    return Section("Lesions by volume", charts, note)


def _subgroups(scores_dir: Path, name: str) -> Section:
    """Scores of lesions by volume and side, and of scans by centre and the columns of ``--metadata``."""
    rows = read_rows(scores_dir / PER_GROUP_FILE, [name]).drop(columns="model_name")
    drawn = rows[rows.groupby("group").value.transform("size") <= MOST_DRAWN]
    charts = []
    for score, what in (("recall", "share of the lesions found"), ("dice", "Dice")):
        columns = {score: "mean", f"{score}_low": "low", f"{score}_high": "high"}
        named = drawn.assign(score=drawn.group + ": " + drawn.value.astype(str)).rename(columns=columns)
        if len(scores := named.dropna(subset="mean")):
            figure = plot_scores(scores)
            figure.axes[0].set_xlabel(what)
            charts.append(chart(figure, what))
    return Section("Subgroups", [*charts, table(rows)] if len(rows) else [], SUBGROUPS_NOTE)


def _covered(title: str, scores_dir: Path | str, names: Iterable[str], seed: int) -> Section:
    """The share of the lesions of each size that the regions of stage 1 cover."""
    lesions = read_rows(Path(scores_dir) / RPN_PER_LESION_FILE, names)
    note = "A lesion is found if half of its voxels or more lie inside the proposed regions."
    return Section(title, _recall(lesions.assign(found=lesions.covered >= COVERED_SHARE), seed), note)


def _recall(lesions: pd.DataFrame, seed: int) -> list[Markup]:
    known = lesions.dropna(subset="volume_cm3")
    return [chart(plot_recall_by_volume(known, seed), "Lesions found by their volume")] if len(known) else []


def _volumes(scans: pd.DataFrame) -> Section:
    """How much lesion was predicted where no mask says what is true."""
    known = scans.predicted_cm3.dropna()
    total = scans[["scan", "predicted_lesions", "predicted_cm3"]].sort_values("predicted_lesions", ascending=False)
    charts = [chart(plot_volumes(known), "Predicted volumes")] if len(known) else []
    return Section("Volumes", [*charts, table(total)], "There are no masks to compare with.")


def _all_scans(scans: pd.DataFrame) -> Section:
    """The scores of every scan, the worst first."""
    columns = ["dice", "pr_auc", "lesion_f1_isles26", "lesion_f1_isles", "false_lesions_isles", "hd95"]
    columns += ["true_lesions", "predicted_lesions", "true_cm3", "predicted_cm3"]
    return Section("All scans", [table(scans.sort_values("dice")[["scan", *columns]])], folded=True)


def _slices(title: str, folder: Path, note: str, folded: bool = False) -> Section:
    """All pictures of slices in a folder."""
    shown = [picture(file, file.stem, small=True) for file in sorted(folder.glob("*.png"))]
    return Section(title, shown, note, folded)


def _origin(trainings: Sequence[Path], record: Path) -> list[Section]:
    """How a result came about: pictures in the folders of its trainings, and its ``run.json``."""
    curves, losses = (
        [picture(folder / file, f"{folder.name}: {file}") for folder in trainings if (folder / file).exists()]
        for file in ("calibration.png", "loss_curves.png")
    )
    run = read_json(record)
    facts = {
        "command": " ".join(map(str, run["command"])),
        "recipes": ", ".join(run["recipes"]),
        "started": run["started"],
        "git commit": run["git_commit"],
        "Python": run["python"],
        **run["versions"],
    }
    note = "What stage 1 covers of the validation scans' lesions against what it proposes of the brain."
    return [
        Section("Calibration of stage 1", curves, note),
        Section("Training", losses, folded=True),
        Section("Settings", [listing(facts), listing(run["settings"])], folded=True),
    ]
