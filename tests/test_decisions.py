"""What is lesion, given its probability: thresholds, small components, and the choice on validation scans."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label

from models.pipeline import Prediction
from models.training import strokeformer
from models.training.strokeformer import WEIGHTS, choose_decision, decision_of, decision_summary, decision_table
from tests import drawn
from utils.regions.region import Region
from utils.scores.masks import Decision
from utils.scores.metrics import scan_scores

SHAPE = (6, 8, 8)
MM = (1.0, 2.0, 5.0)  # 0.01 cm3 a voxel


def probabilities_of(lesion):
    return np.stack([1 - lesion, lesion]).astype(np.float32)


def voxels_of(mask):
    """Regions of one voxel each; None for none at all."""
    return None if mask is None else [Region(z, z + 1, x, y, x + 1, y + 1) for z, y, x in np.argwhere(mask).tolist()]


def two_lesions():
    """Probability 0.4 in eight voxels and 0.9 in two, far from each other."""
    lesion = np.zeros(SHAPE)
    lesion[1:3, 1:3, 1:3] = 0.4
    lesion[4, 6, 5:7] = 0.9
    return lesion


@given(arrays(np.float32, (3, *SHAPE), elements=st.floats(0, 1, width=32)))
def test_default_is_the_likelier_of_two_classes(lesion):
    two = probabilities_of(lesion[0])
    clear = np.abs(two[0] - two[1]) > 1e-6
    assert (Decision().classes(two, MM) == two.argmax(0))[clear].all()


@pytest.mark.parametrize(
    ("threshold", "smallest_cm3", "voxels"),
    [(0.5, 0, 2), (0.3, 0, 10), (0.3, 0.02, 10), (0.3, 0.05, 8), (0.5, 0.05, 0), (0.95, 0, 0), (0.3, 0.09, 0)],
)
def test_threshold_and_smallest_component(threshold, smallest_cm3, voxels):
    classes = Decision(threshold, smallest_cm3).classes(probabilities_of(two_lesions()), MM)
    assert classes.dtype == np.uint8 and np.count_nonzero(classes) == voxels


def test_lesion_that_stage_1_has_seen_nothing_of_is_none():
    lesion, seen = probabilities_of(two_lesions()), np.zeros(SHAPE, bool)
    seen[2, 2, 2:5] = True  # a corner of the first
    assert np.count_nonzero(Decision(0.3).classes(lesion, MM, seen)) == 8
    assert np.count_nonzero(Decision(0.3, 0.09).classes(lesion, MM, seen)) == 0
    assert np.count_nonzero(Decision(0.5).classes(lesion, MM, seen)) == 0
    assert np.count_nonzero(Decision(0.3).classes(lesion, MM, np.zeros(SHAPE, bool))) == 0


def test_of_several_kinds_of_lesion_the_likeliest_is_taken():
    probabilities = np.zeros((3, 1, 1, 2))
    probabilities[:, 0, 0, 0], probabilities[:, 0, 0, 1] = (0.4, 0.25, 0.35), (0.7, 0.2, 0.1)
    assert Decision(0.5).classes(probabilities, MM).tolist() == [[[2, 0]]]
    assert Decision(0.2).classes(probabilities, MM).tolist() == [[[2, 1]]]


def test_small_and_unsure_components_need_more_evidence_of_stage_1():
    lesion, evidence = probabilities_of(two_lesions()), np.zeros(SHAPE, np.float32)
    evidence[1, 1, 1], evidence[4, 6, 5] = 0.3, 0.2
    by_evidence = Decision(0.3, weights=(np.log(3), 0, 0, 0, 1))  # positive from an evidence of a quarter on
    assert np.count_nonzero(by_evidence.classes(lesion, MM, evidence)) == 8
    by_peak = Decision(0.3, weights=(0, 0, 1, 0, 0))
    assert np.count_nonzero(by_peak.classes(lesion, MM)) == 2
    by_volume = Decision(0.3, weights=(-np.log(0.05), 1, 0, 0, 0))
    assert np.count_nonzero(by_volume.classes(lesion, MM)) == 8
    assert not by_volume.classes(np.ones((2, *SHAPE), np.float32), MM).any()  # no component at all


def random_predictions():
    """Three scans with true lesions, of which the last has none."""
    rng, brain = np.random.default_rng(0), np.ones(SHAPE, bool)
    lesions = [rng.random(SHAPE) ** 3, two_lesions(), two_lesions()]
    masks = [rng.random(SHAPE) > 0.95, two_lesions() == 0.9, ~brain]
    scans = [drawn.prepared(f"{n}.npy", brain[None] * 1.0, brain, mask) for n, mask in enumerate(masks)]
    seen = [rng.random(SHAPE) > 0.9, None, two_lesions() == 0.4]
    together = zip(scans, lesions, seen, strict=True)
    return [Prediction(scan, voxels_of(s), probabilities_of(lesion), Decision()) for scan, lesion, s in together]


def test_table_holds_the_scores_of_what_each_decision_would_predict(monkeypatch):
    monkeypatch.setattr(strokeformer, "THRESHOLDS", (0.1, 0.3, 0.5))
    monkeypatch.setattr(strokeformer, "FEWEST", 1)
    predictions = random_predictions()
    masks = [prediction.scan.mask for prediction in predictions]
    table = decision_table(zip(predictions, masks, strict=True))
    assert (table.probability == 0).sum() == 3 and table.constant.notna().any()
    for _, row in table.iterrows():
        each = [
            scan_scores(replace(p, decision=decision_of(row)).lesions, mask, p.scan.own.spacing_mm)
            for p, mask in zip(predictions, masks, strict=True)
        ]
        assert row.dice == pytest.approx(np.mean([scores["dice"] for scores in each[:2]]))
        assert row.false == sum(scores["false_lesions_isles26"] for scores in each)
        true = [label(mask, np.ones((3, 3, 3)))[1] for mask in masks]
        recalled = sum(n * scores["lesion_recall_isles26"] for n, scores in zip(true[:2], each, strict=False))
        assert (row.found, row.found + row.missed) == (pytest.approx(recalled), sum(true))
        assert row.lesion_f1 == pytest.approx(2 * row.found / (2 * row.found + row.missed + row.false))


def test_regression_learns_which_components_are_lesions():
    rng, candidates = np.random.default_rng(1), []
    for _ in range(6):
        mask, lesion = np.zeros((8, 40, 40), bool), np.zeros((8, 40, 40))
        for n, (y, x) in enumerate(np.ndindex(4, 4)):
            place = (slice(2, 4), slice(10 * y + 2, 10 * y + 4), slice(10 * x + 2, 10 * x + 4))
            mask[place], lesion[place] = n % 2, rng.uniform(0.35, 0.6) + 0.3 * (n % 2)
        scan = drawn.prepared("a.npy", np.ones((1, *mask.shape)), np.ones(mask.shape, bool), mask)
        candidates.append((Prediction(scan, None, probabilities_of(lesion), Decision()), mask))
    row = choose_decision(decision_table(candidates))
    assert row.dice > 0.95 and row.lesion_f1 > 0.95 and row.probability > 0
    decision = decision_of(row)
    assert decision.weights[2] > 0 and len(decision.weights) == 5


def test_volume_never_speaks_against_a_lesion():
    rng = np.random.default_rng(2)
    volume, peak = rng.normal(size=200), rng.normal(size=200)
    true = peak - volume + rng.normal(size=200) > 0  # the large ones are false
    _, (of_volume, of_peak) = strokeformer._regress(np.stack([volume, peak], 1), true)
    assert of_volume == 0 and of_peak > 0.3


def test_best_decision_is_chosen_and_of_equal_ones_the_plainest():
    table = pd.DataFrame(
        {
            "threshold": [0.3, 0.3, 0.5, 0.5, 0.7],
            "probability": [0.0, 0.1, 0.0, 0.1, 0.0],
            "dice": [0.4, 0.6, 0.5, 0.5, 0.6],
            "lesion_f1": [0.5, 0.5, 0.6, 0.6, 0.3],
            **dict.fromkeys(WEIGHTS, 2.0),
        }
    )
    plainest = choose_decision(table)
    assert decision_of(plainest) == Decision(0.5)
    assert "0.5, in components" in decision_summary(plainest)
    assert "of 0: Dice 0.50 and lesion F1 0.60" in decision_summary(plainest)
    best = choose_decision(table.assign(dice=[0.4, 0.9, 0.5, 0.5, 0.6]))
    assert decision_of(best) == Decision(0.3, weights=(2.0,) * 5)


def test_decision_of_the_network_stays_where_few_scans_teach_no_better_one():
    lesion = np.zeros(SHAPE)
    lesion[1:3, 1:3, 1:3], lesion[4, 6, 5:7] = 0.26, 0.28  # the first is a lesion, the other is none
    scan = drawn.prepared("a.npy", np.ones((1, *SHAPE)), np.ones(SHAPE, bool), lesion == 0.26)
    prediction = Prediction(scan, None, probabilities_of(lesion), Decision())
    held = Decision(0.25, weights=(5.5, 1.0, 0.0, 0.0, 0.0))  # from 0.004 cm3 on; 8 and 2 voxels of 1 mm are there
    without, table = (decision_table([(prediction, lesion == 0.26)], *own) for own in ((), (held,)))
    assert decision_of(choose_decision(table)) == held and len(table) == len(without) + 2
    assert choose_decision(without).dice < choose_decision(table).dice == 1
    assert "in components that are one as before: Dice 1.00" in decision_summary(choose_decision(table))


def test_scans_without_lesions_choose_nothing():
    table = pd.DataFrame({"threshold": [0.5, 0.7], "probability": 0.0, "dice": np.nan, "lesion_f1": [0, 1]})
    assert decision_of(choose_decision(table.assign(**dict.fromkeys(WEIGHTS, np.nan)))) == Decision()
