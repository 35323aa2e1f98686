"""Training of stage 2 on scans and their regions; on validation scans it chooses what is lesion, given its probability:
the threshold, and which components."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from scipy.special import logit

from data.batches.datamodules import SegmentationDataModule
from data.scans.checks import read_lesions
from data.scans.cohort import Case
from data.scans.contrast import common_contrast
from data.scans.open import Cohort
from models.checkpoints import load_strokeformer, store_hyperparameters
from models.pipeline import Prediction, Segmenter, TwoStage
from models.segmentation.module import StrokeFormer
from models.training.fit import Task, fit
from models.training.settings import StrokeFormerTraining
from models.training.starts import start_from
from utils.files import write_csv
from utils.progress import progress
from utils.regions.region import Region
from utils.scores.masks import Components, Decision, Features, features_of, find_components, overlap_scores
from utils.scores.metrics import ISLES26_IOU, count_matched

Regions = dict[str, list[Region]] | None  # of each scan by its file name; None for whole volumes
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # of a component's being a lesion
WEIGHTS = ("constant", *(f"weight_{name}" for name in Features._fields))  # of `Decision.weights`
RIDGE, FEWEST = 0.1, 5  # scikit-learn's C, and components of either kind: ten validation scans hold few lesions


def train_strokeformer(
    settings: StrokeFormerTraining,
    train: list[Case],
    val: list[Case],
    regions: Regions,
    cohort: Cohort,
    name: str,
    inputs: dict[str, str],
) -> Path:
    """Train stage 2 inside regions on cases of the `cohort`; the path of its best checkpoint. `name` and `inputs` are
    as for `models.training.rpn.train_rpn`."""
    pl.seed_everything(settings.seed, verbose=False)
    model = StrokeFormer(**vars(settings.network))
    start_from(model, settings.run.init_ckpt_path, cohort.grid.spacing_mm)
    data = SegmentationDataModule(
        train, val, regions, cohort, model.window, settings.loading, settings.transforms, settings.seed
    )
    shown = val[: settings.logging.num_samples]
    monitor = ("val_loss" if len(data.val) else "train_loss", "min")
    draw = partial(draw_volumes, settings=settings, shown=shown, regions=regions, cohort=cohort)
    finish = partial(decide, settings, val, regions, cohort)
    contrast = common_contrast(case.name for case in train)
    return fit(Task(name, model, data, settings, inputs, cohort.grid, contrast, monitor, draw, finish))


def pipeline_of(model: Segmenter, settings: StrokeFormerTraining, regions: Regions) -> TwoStage:
    """The network with the regions of its training."""
    regions_of = None if regions is None else lambda scan: regions[scan.name]
    return TwoStage(model, regions_of, settings.sliding, settings.loading.batch_size)


def decide(
    settings: StrokeFormerTraining, val: list[Case], regions: Regions, cohort: Cohort, folder: Path, checkpoint: Path
) -> pd.Series:
    """Store the best `Decision` on the validation scans in the checkpoint; its row of `decision_table`."""
    model, cases = load_strokeformer(checkpoint), progress(val, "Choosing what is lesion")
    pipeline = pipeline_of(model, settings, regions)
    pairs = ((pipeline.predict(cohort.prepare(case)), read_lesions(case.lesion_mask)[0]) for case in cases)
    table = decision_table(pairs, model.decision)
    write_csv(folder / "decisions.csv", table)
    chosen = choose_decision(table)
    print(decision_summary(chosen))
    decision = decision_of(chosen)
    store_hyperparameters(checkpoint, lesion_threshold=decision.threshold, lesion_weights=list(decision.weights))
    return chosen


class Candidates(NamedTuple):
    """The components of a prediction above a threshold, and what is known of them."""

    components: Components
    features: Features


def decision_table(predictions: Iterable[tuple[Prediction, np.ndarray]], held: Decision | None = None) -> pd.DataFrame:
    """The scores of every `Decision` that may be chosen, a row each, on the scans' own grids as in an evaluation.

    Predictions come with the true lesions, (D, H, W) bool on the scan's own grid. For each of `THRESHOLDS` a logistic
    regression tells from their features which components are lesions. A row keeps those of a `probability` at least,
    or all (0), and holds the `WEIGHTS` of that. A row without a probability is the decision that the network `held`, by
    other scans: on few it may be the better one. ``dice`` is the mean over scans with lesions, NaN without any.
    ``lesion_f1``, that of ISLES'26, and the numbers of ``found``, ``missed`` and ``false`` lesions are over all scans
    together: the F1 of a scan without lesions is 0 or 1.
    """
    thresholds = THRESHOLDS if held is None else (*THRESHOLDS, held.threshold)
    by_threshold: dict[float, list[Candidates]] = {threshold: [] for threshold in thresholds}
    for prediction, target in predictions:
        for threshold, candidates in by_threshold.items():
            candidates.append(_candidates(prediction, target, threshold))
    rows = []
    for threshold, candidates in by_threshold.items():
        choices = [*weights_by_probability(candidates).items()]
        if held and threshold == held.threshold:
            choices.append((np.nan, held.weights))
        for probability, weights in choices:
            decision = Decision(threshold, weights=weights)
            scores = _scores(candidates, [decision.accepts(each.features) for each in candidates])
            named = dict(zip(WEIGHTS, weights or [np.nan] * len(WEIGHTS), strict=True))
            rows.append({"threshold": threshold, "probability": probability, **scores, **named})
    return pd.DataFrame(rows)


def _candidates(prediction: Prediction, target: np.ndarray, threshold: float) -> Candidates:
    probability, evidence = prediction.lesion_probability, prediction.evidence
    components = find_components(probability > threshold, target)
    own = None if evidence is None else evidence[components.box]
    features = features_of(components.predicted, probability[components.box], own, prediction.scan.own.spacing_mm)
    return Candidates(components, features)


def weights_by_probability(candidates: list[Candidates]) -> dict[float, tuple[float, ...]]:
    """`Decision.weights` by the least probability that a component must have of being a lesion; none for 0.

    A component is one if a quarter of its voxels are. Nothing is learned from fewer than `FEWEST` of either kind. No
    weight is below 0: large false components of a few scans would speak against volume, and the largest infarcts would
    be none.
    """
    logs = np.concatenate([each.features.logs for each in candidates])
    shares = [each.components.common.sum(0) / each.components.predicted_voxels for each in candidates]
    true = np.concatenate(shares) >= ISLES26_IOU
    weights: dict[float, tuple[float, ...]] = {0.0: ()}
    if min(true.sum(), np.invert(true).sum()) < FEWEST:
        return weights
    intercept, coefficients = _regress(logs, true)
    for probability in PROBABILITIES:
        weights[probability] = tuple(np.array([intercept - logit(probability), *coefficients]).round(6).tolist())
    return weights


def _regress(features: np.ndarray, true: np.ndarray) -> tuple[float, np.ndarray]:
    """Intercept and coefficients (F,) of a logistic regression on features (N, F), of which none speaks against."""
    from sklearn.linear_model import LogisticRegression

    speaking = np.ones(features.shape[1], bool)
    while True:
        model = LogisticRegression(C=RIDGE, max_iter=1000).fit(features * speaking, true)
        coefficients = model.coef_[0] * speaking
        if (coefficients >= 0).all():
            return float(model.intercept_[0]), coefficients
        speaking[coefficients.argmin()] = False


def choose_decision(table: pd.DataFrame) -> pd.Series:
    """The row with the largest sum of Dice and lesion F1; of equal ones that nearest to an argmax of all components."""
    gain = (table.dice + table.lesion_f1).fillna(0)
    order = table.assign(gain=gain.round(6), off=(table.threshold - 0.5).abs())
    best = order.sort_values(["gain", "off", "probability"], ascending=[False, True, True]).index[0]
    return table.loc[best]


def decision_of(row: pd.Series) -> Decision:
    """The decision of a row of `decision_table`."""
    weights = () if row.probability == 0 else tuple(row[list(WEIGHTS)].dropna().tolist())
    return Decision(float(row.threshold), weights=weights)


def decision_summary(row: pd.Series) -> str:
    """One line: what a decision gives on the scans of its table."""
    least = "as before" if np.isnan(row.probability) else f"with a probability of {row.probability:g}"
    return (
        f"Lesion is what has a probability above {row.threshold:g}, in components that are one {least}: Dice "
        f"{row.dice:.2f} and lesion F1 {row.lesion_f1:.2f} on the validation scans"
    )


def draw_volumes(
    module: StrokeFormer, settings: StrokeFormerTraining, shown: list[Case], regions: Regions, cohort: Cohort
):
    """Pictures of the predictions of some validation scans, (name, Figure) pairs."""
    pipeline = pipeline_of(module, settings, regions)
    for case in shown:
        yield case.stem, pipeline.predict(cohort.prepare(case)).picture()


def _scores(candidates: list[Candidates], kept: list[np.ndarray]) -> dict[str, float]:
    """The mean Dice over scans, NaN without lesion, and the F1 and counts of lesions; (N,) bool tells the kept ones."""
    dices, counts = [], np.zeros(3, int)
    for (components, _), own in zip(candidates, kept, strict=True):
        counts += count_matched(components, ISLES26_IOU, own)
        inside, predicted = components.common[:, own].sum(), components.predicted_voxels[own].sum()
        if true := components.true_voxels.sum():
            dices.append(float(overlap_scores(inside, predicted - inside, true - inside, 0)["dice"]))
    found, false, missed = counts.tolist()
    f1 = float(overlap_scores(found, false, missed, 0)["f1"])
    return {
        "dice": np.mean(dices) if dices else np.nan,
        "lesion_f1": f1,
        "found": found,
        "missed": missed,
        "false": false,
    }
