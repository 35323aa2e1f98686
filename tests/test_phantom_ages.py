"""Heads of all ages and the look of lesions in the synthetic cohort."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from data.phantom.ages import Ageing, disease_share, draw_ageing, load_ventricles, paint_ageing
from data.phantom.appearance import MOST_GAIN, STAND_OUT, contrast, paint_lesions, paint_past, stand_out, surroundings
from data.phantom.cohort import make_subject
from data.phantom.contrast import STRUCTURES, paint_structures
from data.phantom.heads import MIDLINE_MM, Atrophy, Grid, Head, square_distance, warp_head
from data.settings import PhantomSettings

LEVELS = {"white": 80.0, "grey": 60.0, "fluid": 16.0, "lesion": 20.0}
SPACING = 3.0


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@lru_cache(maxsize=4)
def head_of(atrophy: Atrophy | None = None, spacing: float = SPACING) -> Head:
    return warp_head(Grid((spacing,) * 3), 3.0, rng(1), atrophy)


def ageing(**changes) -> Ageing:
    return replace(Ageing(70.0, 1.0, 0.0, 0.0, 0, 0), **changes)


def ventricles_cm3(head: Head) -> float:
    near = load_ventricles().distance_at(head.template_mm[:, head.brain]) < 3
    return float((1 - head.grey - head.white)[head.brain][near].sum()) * SPACING**3 / 1000


def test_ventricles_widen_by_the_factor_and_the_brain_mask_stays():
    young, old, narrow = (head_of(ageing(ventricles=f).atrophy) for f in (1.0, 2.5, 0.7))
    assert ventricles_cm3(old) / ventricles_cm3(young) == pytest.approx(2.5, rel=0.25)
    assert ventricles_cm3(narrow) < 0.9 * ventricles_cm3(young)
    assert (old.brain != young.brain).sum() < 0.002 * young.brain.sum()


def test_sulci_widen_where_there_are_folds():
    young, old = head_of(), head_of(ageing(sulci=2.0).atrophy)
    shares = [1 - (head.grey + head.white)[head.brain].mean() for head in (young, old)]
    assert shares[1] > 1.3 * shares[0]


def test_without_variety_no_head_ages_and_with_it_they_are_as_old_as_patients():
    assert draw_ageing(0.0, rng()) is None
    drawn = [draw_ageing(0.5, rng(seed)) for seed in range(300)]
    assert np.median([a.years for a in drawn]) == pytest.approx(65, abs=4)
    assert max(a.years for a in drawn) <= 90 and all(0.7 <= a.ventricles <= 3 for a in drawn)
    disease = np.percentile([a.disease_cm3 for a in drawn], [25, 50, 75])
    np.testing.assert_allclose(disease, [2.18, 5.86, 14.61], rtol=0.35)  # MRI-GENIE
    old, young = (np.median([a.ventricles for a in drawn if (a.years > 65) == is_old]) for is_old in (True, False))
    assert old > 1.2 * young


def test_white_matter_disease_has_its_volume_at_any_spacing_and_lies_in_white_matter():
    for spacing in (2.0, 4.0):
        head = head_of(None, spacing)
        share = disease_share(head, 15.0, rng(2))
        assert (share > 0.5).sum() * spacing**3 / 1000 == pytest.approx(15, rel=0.3)
        assert head.white[share > 0.5].min() > 0.5
        near = load_ventricles().distance_at(head.template_mm[:, share > 0.5]) < 12
        assert near.mean() > 0.3


@pytest.mark.parametrize(("modality", "sign"), [("t1w", -1), ("flair", 1), ("dwi", 1)])
def test_white_matter_disease_is_dark_on_t1w_and_bright_on_flair(modality, sign):
    signal = np.full(head_of().brain.shape, 80, np.float32)
    paint_ageing(signal, head_of(), modality, LEVELS, ageing(disease_cm3=20.0), rng(3))
    changed = np.abs(signal - 80) > 1
    assert changed.any() and (np.sign(signal - 80)[changed] == sign).all()


def test_healthy_structures_are_bright_or_dark_on_flair_and_dwi():
    head = head_of()
    for modality in ("flair", "dwi"):
        gains = {}
        left = head.template_mm[0] < MIDLINE_MM
        for seed in range(4):
            signal = np.ones(head.brain.shape, np.float32)
            paint_structures(signal, head, modality, LEVELS, 0.67, rng(seed))
            for name, structure in STRUCTURES.items():
                core = square_distance(head.template_mm, structure.centres_mm[0], structure.half_mm) < 0.5
                core &= head.tissue
                gains.setdefault(name, []).append([signal[core & left].mean(), signal[core & ~left].mean()])
        assert np.mean(gains["amygdala"], 0).min() > 1.03 and np.mean(gains["cingulate"], 0).min() > 1.03
        assert np.mean(gains["pallidum"], 0).max() < 0.92


def ball(head: Head, place_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """Opacity of a ball of tissue on one side, at a place in template mm."""
    from_centre = head.template_mm - np.float32(place_mm)[:, None, None, None]
    inside = radius_mm - np.linalg.norm(from_centre, axis=0)
    return (head.tissue / (1 + np.exp(-np.clip(inside / 0.6, -30, 30)))).astype(np.float32)


def test_plain_lesion_has_one_level_and_a_varied_one_a_cavity_rim_and_faint_parts():
    head = head_of()
    signal, opacity = np.full(head.brain.shape, 80, np.float32), ball(head, (140, 110, 95), 14)
    plain = paint_lesions(signal, head, opacity, "t1w", LEVELS, 0.0, rng())
    core = opacity > 0.99
    assert plain[core].mean() == pytest.approx(20, rel=0.2)
    np.testing.assert_allclose(plain[opacity < 1e-4], 80, atol=0.1)
    means = [paint_lesions(signal, head, opacity, "t1w", LEVELS, 1.0, rng(seed))[core].mean() for seed in range(30)]
    assert min(means) < 35 and max(means) > 55 and max(means) < 80


@pytest.mark.parametrize("modality", ["flair", "dwi"])
def test_large_acute_infarcts_are_even_to_uneven(modality):
    head = head_of()
    signal, opacity = np.full(head.brain.shape, 60, np.float32), ball(head, (125, 110, 95), 30)
    core, bright = opacity > 0.99, {**LEVELS, "lesion": 110.0}
    painted = [paint_lesions(signal, head, opacity, modality, bright, 0.5, rng(seed))[core] for seed in range(40)]
    clear = [values for values in painted if np.percentile(values, 25) > 80]  # no part is faint
    spreads = [np.subtract(*np.percentile(values, (75, 25))) / np.median(values) for values in clear]
    assert len(clear) > 10 and min(spreads) < 0.1 and max(spreads) > 0.3


def test_large_old_infarct_is_a_cavity_and_a_small_one_may_be_faint():
    head = head_of()
    signal = np.full(head.brain.shape, 80, np.float32)
    means = {}
    for radius in (5, 30):
        opacity = ball(head, (125, 110, 95), radius)
        painted = [paint_lesions(signal, head, opacity, "t1w", LEVELS, 0.5, rng(seed)) for seed in range(30)]
        means[radius] = [scan[opacity > 0.5].mean() for scan in painted]
    assert max(means[30]) < 55 and np.median(means[30]) < 40
    assert max(means[5]) > 60


def test_old_infarct_widens_the_ventricle_of_its_side():
    head = head_of()
    side = np.sign(head.template_mm[0] - MIDLINE_MM)
    signal = np.where(head.brain & (head.grey + head.white < 0.5), 16, 80).astype(np.float32)
    opacity = ball(head, (138, 110, 100), 18)
    near = load_ventricles().distance_at(head.template_mm.reshape(3, -1)) < 8
    outside = (opacity < 1e-3) & near.reshape(side.shape)
    darker = np.zeros(2)
    for seed in range(4):
        change = signal - paint_lesions(signal, head, opacity, "t1w", LEVELS, 1.0, rng(seed))
        darker += [change[outside & (side == s)].sum() for s in (-1, 1)]
    assert darker[1] > 1000 and darker[1] > 10 * abs(darker[0])


def test_old_lesions_beside_acute_ones_are_not_in_the_mask():
    head = head_of()
    for modality, darkens in (("dwi", True), ("flair", True), ("t1w", False)):
        signal = np.full(head.brain.shape, 80, np.float32)
        for seed in range(4):
            paint_past(signal, head, modality, LEVELS, 1.0, rng(seed))
        assert (signal.min() < 60) == darkens
    settings = PhantomSettings(spacing=(6.0,) * 3, modality="dwi", healthy_fraction=1.0, variety=1.0)
    assert not make_subject(settings, 0).mask.any()


def deviations(scan: np.ndarray, lesions: np.ndarray, head: Head) -> list[float]:
    """By how many standard deviations of what is around it each lesion's mean exceeds the median there."""
    found = surroundings(lesions, head.brain, head.grid.spacing_hwd)
    return [(mean - median) / spread for mean, median, spread in (contrast(scan[f.box], f) for f in found)]


def test_a_lesion_that_nobody_would_see_is_made_to_stand_out_and_no_other_voxel_changes():
    head = head_of()
    without = np.where(head.brain, rng(3).normal(60, 5, head.brain.shape), 0).astype(np.float32)
    faint, clear = (ball(head, place, 8) for place in ((125, 110, 95), (60, 110, 95)))
    before = without + 4 * faint + 40 * clear
    scan = before.copy()
    stand_out(scan, without, head, (faint + clear) > 0.5, "dwi", 1.0, rng())
    low, high = STAND_OUT["dwi"]
    assert min(deviations(before, faint > 0.5, head)) < 1 and low < deviations(scan, faint > 0.5, head)[0] < high
    np.testing.assert_allclose(scan[faint < 1e-6], before[faint < 1e-6], atol=1e-3)  # the clear lesion too
    half = before.copy()
    stand_out(half, without, head, faint > 0.5, "dwi", 0.5, rng())
    assert low / 2 < deviations(half, faint > 0.5, head)[0] < high / 2


def test_no_lesion_is_made_brighter_without_bounds_nor_a_dark_one_darker():
    head = head_of()
    without = np.where(head.brain, rng(3).normal(60, 5, head.brain.shape), 0).astype(np.float32)
    opacity = ball(head, (125, 110, 95), 8)
    for level, most in ((0.5, 0.5 * MOST_GAIN), (-5.0, -5.0)):
        scan = without + np.float32(level) * opacity
        stand_out(scan, without, head, opacity > 0.5, "dwi", 1.0, rng())
        np.testing.assert_allclose(scan, without + most * opacity, atol=1e-3)


def test_drawn_acute_lesions_stand_out_and_the_scan_around_is_that_of_the_healthy_head():
    n, settings = 8, PhantomSettings(spacing=(3.0,) * 3, modality="dwi", n_subjects=8, healthy_fraction=0.0, seed=3)
    seen = []
    for index in range(n):
        subject = make_subject(settings, index)
        healthy = make_subject(replace(settings, healthy_fraction=1.0), index)
        found = surroundings(subject.mask[0] > 0, subject.brain, settings.spacing)
        values = [(f, contrast(subject.scan[0][f.box], f)) for f in found]
        seen += [(mean - median) / spread for _, (mean, median, spread) in values]
        far = subject.brain & ~binary_dilation(subject.mask[0] > 0, iterations=6)
        assert np.abs(subject.scan - healthy.scan)[0][far].mean() < 1
    assert len(seen) > 15 and np.mean(np.array(seen) > 0.9 * STAND_OUT["dwi"][0]) > 0.85
