"""Pairs of slices, lesions that are varied and fitted, and the command that moves them."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import binary_erosion

from augmentation.cohort import Criteria, Scan, find_pairs, index_slices
from augmentation.lesions import (
    LEAST_KEPT,
    allowed_region,
    cut_lesion,
    place,
    place_anywhere,
    turn_and_shrink,
    vary,
    ventricles,
)
from data.batches.cutting import cut_cohort
from data.scans.brain import with_brains
from data.scans.cohort import augmented_cases, pair_cases
from data.scans.folds import Fold, usable_augmented
from data.scans.grid import Grid
from data.scans.prepared import prepare_scan
from tests.running import is_png, run_script

# --- pairs ---------------------------------------------------------------------------------------------


@pytest.fixture
def slices():
    """Three volumes of 40 slices with the same round head; volumes 1 and 2 have a lesion in slices 20 and 21."""
    y, x = np.mgrid[:48, :48]
    head = np.broadcast_to((y - 24) ** 2 + (x - 24) ** 2 < 18**2, (40, 48, 48))
    lesion = np.zeros(head.shape, bool)
    lesion[20:22, 20:24, 20:24] = True
    index = pd.concat([index_slices(v, head, lesion & (v > 0)) for v in range(3)], ignore_index=True)
    images = {0: head[0] * 0.5, 1: head[0] * 0.6, 2: np.where(head[0], np.random.default_rng(0).random((48, 48)), 0)}
    return index, lambda row: (images[index.volume[row]], head[0])


def partners(slices, z, **criteria):
    index, read = slices
    (row,) = np.flatnonzero((index.volume == 0) & (index.z == z))
    pairs = find_pairs(index, row, index.volume > 0, read, np.random.default_rng(0), Criteria(**criteria))
    return {(index.volume[pair.sick], index.z[pair.sick]) for pair in pairs}


def test_pairs_are_alike_in_structure_and_near_in_depth(slices):
    assert partners(slices, 10) == {(1, 20), (1, 21)}  # volume 2 has the outline but noise inside
    assert partners(slices, 10, min_ssim=0) == {(1, 20), (1, 21), (2, 20), (2, 21)} or len(partners(slices, 10)) <= 3
    assert partners(slices, 10, max_depth_difference=10) == {(1, 20)}
    assert partners(slices, 10, max_depth_difference=9) == set()


def test_the_search_ends_with_enough_partners_and_looks_at_so_many_candidates_only(slices, monkeypatch):
    index, read = slices
    looked_at = []
    counting = (index, lambda row: looked_at.append(row) or read(row))
    monkeypatch.setattr("augmentation.cohort.PARTNERS", 1)
    assert len(partners(counting, 10, min_ssim=0)) == 1
    looked_at.clear()
    monkeypatch.setattr("augmentation.cohort.CANDIDATES", 2)
    partners(counting, 10, min_ssim=1)
    assert len(looked_at) <= 3  # the healthy slice and two candidates


def test_the_tips_of_the_brain_are_left_out():
    head = np.zeros((4, 10, 10), bool)
    head[0, :1], head[1, :3], head[2, :10] = True, True, True
    assert index_slices(0, head, np.zeros_like(head)).z.tolist() == [1, 2]


# --- lesions -------------------------------------------------------------------------------------------


def lesion_of(shape, spans, value=0.2):
    mask = np.zeros(shape, bool)
    mask[spans] = True
    image = np.where(mask, value, 0.7)[None]
    return image, mask, cut_lesion(image, mask, ~mask)


def test_a_cut_lesion_keeps_its_shape_and_knows_the_tissue_around_it():
    _, mask, lesion = lesion_of((40, 40), (slice(10, 14), slice(20, 26)))
    assert lesion.mask.sum() == mask.sum() and lesion.centre == (11.5, 22.5)
    assert lesion.patch[0][lesion.mask] == pytest.approx(0.2) and lesion.tissue[0] == pytest.approx(0.7)


def test_a_lesion_at_the_border_of_the_image_is_cut_whole():
    *_, lesion = lesion_of((20, 20), (slice(0, 4), slice(16, 20)))
    assert lesion.mask.sum() == 16 and lesion.centre == (1.5, 17.5)


def test_a_lesion_that_is_not_varied_comes_back_to_its_place():
    for shape, spans in (
        ((40, 41), (slice(10, 15), slice(20, 26))),
        ((9, 40, 41), (slice(2, 5), slice(9, 15), slice(20, 25))),
    ):
        _, mask, lesion = lesion_of(shape, spans)
        fitted, window = place(vary(lesion, np.random.default_rng(0), 0, 1, 0)[0], lesion.centre, np.ones(shape, bool))
        again = np.zeros(shape, bool)
        again[window] = fitted.mask
        np.testing.assert_array_equal(again, mask)


def test_a_quarter_turn_swaps_the_sides_of_a_lesion():
    _, _, lesion = lesion_of((40, 40), (slice(16, 20), slice(15, 25)))
    turned = turn_and_shrink(lesion, 90, 1)
    sides = [np.ptp(np.flatnonzero(turned.mask.any(axis))) + 1 for axis in (0, 1)]
    assert sides == [4, 10]
    assert turned.patch[0][turned.mask] == pytest.approx(0.2)


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (7, 9)), st.integers(0, 2**32 - 1), st.floats(0, 180), st.floats(0.1, 1), st.integers(0, 5))
def test_a_varied_lesion_is_never_empty_and_never_larger_than_before_erosion(mask, seed, angle, scale, erosion):
    mask[3, 4] = True
    lesion = cut_lesion(np.zeros((1, 7, 9)), mask, ~mask)
    varied, how = vary(lesion, np.random.default_rng(seed), angle, scale, erosion)
    assert varied.mask.any()
    assert abs(how["angle"]) <= angle and scale <= how["scale"] <= 1 and how["erosion"] <= erosion
    assert not (varied.mask & ~turn_and_shrink(lesion, how["angle"], how["scale"]).mask).any()


def test_a_lesion_of_half_the_diameter_has_an_eighth_of_the_volume_and_its_contrast():
    *_, lesion = lesion_of((24, 40, 40), (slice(8, 16), slice(10, 18), slice(20, 28)))
    half = turn_and_shrink(lesion, 0, 0.5)
    assert half.mask.sum() == 64 and half.centre == lesion.centre
    assert half.patch[0][half.mask] == pytest.approx(0.2)


def test_sizes_of_shrunken_lesions_are_spread_evenly_over_the_logarithm():
    _, _, lesion = lesion_of((40, 40), (slice(10, 17), slice(10, 17)))
    rng = np.random.default_rng(0)
    scales = np.array([vary(lesion, rng, 0, 0.25, 0)[1]["scale"] for _ in range(400)])
    assert np.mean(scales < 0.5) == pytest.approx(0.5, abs=0.08)


def test_erosion_takes_one_layer_a_voxel():
    _, _, lesion = lesion_of((40, 40), (slice(10, 17), slice(10, 17)))
    rng = np.random.default_rng(0)
    sizes = {how["erosion"]: int(v.mask.sum()) for v, how in (vary(lesion, rng, 0, 1, 9) for _ in range(60))}
    assert sizes == {0: 49, 1: 25, 2: 9, 3: 1}


def test_a_lesion_stays_where_it_is_allowed_or_is_not_moved():
    _, _, lesion = lesion_of((40, 40), (slice(10, 14), slice(10, 20)))
    allowed = np.zeros((40, 40), bool)
    allowed[:, :15] = True
    fitted, window = place(lesion, (12, 14), allowed)
    assert fitted.mask.sum() == 20 == LEAST_KEPT * 40 and allowed[window][fitted.mask].all()
    assert place(lesion, (12, 15), allowed) is None
    assert place(lesion, (-30, 100), allowed) is None


@pytest.mark.parametrize("centre", [(20, 30), (20.5, 30.5), (19.2, 30.7)])
def test_the_centre_of_a_placed_lesion_tells_by_how_many_voxels_it_moved(centre):
    _, mask, lesion = lesion_of((40, 60), (slice(10, 12), slice(10, 13)))
    fitted, window = place(lesion, centre, np.ones((40, 60), bool))
    again = np.zeros((40, 60), bool)
    again[window] = fitted.mask
    moved = np.argwhere(again).min(0) - np.argwhere(mask).min(0)
    np.testing.assert_array_equal(np.subtract(fitted.centre, lesion.centre), moved)


def test_a_lesion_placed_anywhere_visits_all_that_is_allowed_and_nothing_else():
    _, _, lesion = lesion_of((40, 40), (slice(10, 12), slice(10, 12)))
    allowed, visited = np.zeros((40, 40), bool), np.zeros((40, 40), int)
    allowed[5:11, 20:30] = allowed[30:36, 2:12] = True
    rng = np.random.default_rng(0)
    for _ in range(600):
        fitted, window = place_anywhere(lesion, allowed, rng)
        visited[window] += fitted.mask
    np.testing.assert_array_equal(visited > 0, allowed)
    assert place_anywhere(lesion, np.zeros((40, 40), bool), rng) is None


def test_a_lesion_placed_anywhere_goes_to_small_slices_as_often_as_to_large_ones():
    _, _, lesion = lesion_of((6, 40, 40), (slice(2, 3), slice(10, 12), slice(10, 11)))
    allowed = np.zeros((2, 40, 40), bool)
    allowed[0, 10:30, 10:12] = allowed[1] = True
    rng = np.random.default_rng(0)
    slices = [place_anywhere(lesion, allowed, rng)[0].centre[0] for _ in range(400)]
    assert np.mean(np.array(slices) == 0) == pytest.approx(0.5, abs=0.08)


def test_new_lesions_keep_off_the_rim_the_ventricles_and_the_old_lesions():
    y, x = np.mgrid[:60, :60]
    head, ventricle = (y - 30) ** 2 + (x - 30) ** 2 < 25**2, (abs(y - 30) < 5) & (abs(x - 30) < 8)
    sulcus, old = (abs(y - 8) < 2) & (abs(x - 30) < 4), (abs(y - 45) < 3) & (abs(x - 40) < 3)
    image = np.where(head, 0.6 + 0.3 * ((y + x) % 2), 0.0)
    image[ventricle | sulcus] = 0.1
    dark = ventricles(image, head)
    assert (dark & ventricle).sum() > 0.9 * ventricle.sum() and not (dark & ~ventricle).any()
    inner = binary_erosion(head, iterations=2)
    allowed = allowed_region(image, head, inner, old)
    assert not (allowed & (dark | old | ~head)).any() and allowed.sum() > 0.6 * head.sum()
    with_air = [np.pad(array, 7) for array in (image, head, inner, old)]
    np.testing.assert_array_equal(allowed_region(*with_air), np.pad(allowed, 7))
    nothing = np.zeros((5, 5), bool)
    assert not allowed_region(np.ones((5, 5)), nothing, nothing, nothing).any()
    assert not ventricles(np.ones((5, 5)), ~nothing).any()


def test_the_usual_step_is_that_of_healthy_brain_in_plane():
    head, lesions = np.ones((3, 9, 30), bool), np.zeros((3, 9, 30), bool)
    lesions[1, 4, 15] = True
    image = np.stack([np.indices(head.shape)[2] * scale for scale in (2.0, 5.0)])
    image += 1000 * np.indices(head.shape)[0]  # between slices
    image[:, 1, 4, 15] = -1e6
    scan = Scan(None, image, None, None, head, lesions, None)
    np.testing.assert_allclose(scan.usual_step, [2, 5])


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["volume", "slice"])
def augmented(request, tmp_path_factory, cohort):
    out_dir = tmp_path_factory.mktemp("augmented")
    command = ["-m", "augmentation", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks"]
    command += ["--out_dir", out_dir, "--copies", 2, "--min_iou", 0.6, "--min_ssim", 0.2, "--mode", request.param]
    return out_dir, command, run_script(*command, cwd=out_dir).out


def test_augmented_scans_hold_new_lesions_and_are_else_their_recipients(augmented, cohort):
    out_dir, _, out = augmented
    provenance = json.loads((out_dir / "provenance.json").read_text())
    assert len(provenance) >= 6 and f"{len(provenance)} augmented scans" in out
    changed = []
    for name, origin in provenance.items():
        scan, mask = np.load(out_dir / "Scans" / name), np.load(out_dir / "Masks" / origin["mask"])
        before = np.load(cohort / "Scans" / origin["recipient_scan"])
        old = np.load(cohort / "Masks" / origin["mask"].replace("_augmented-1", "").replace("_augmented-2", ""))
        new = mask > old
        assert scan.dtype == np.float32 and mask.dtype == np.uint8 and "T1lesion_mask_augmented-" in origin["mask"]
        np.testing.assert_array_equal(scan[~new], before[~new])
        assert new.sum() == sum(lesion["voxels"] for lesion in origin["lesions"]) and (mask >= old).all()
        assert origin["recipient"] not in origin["donors"] and len(origin["donors"]) > 0
        changed += [float((scan - before)[new].mean())]
    assert np.mean(changed) < 0  # lesions of the phantom are dark
    assert is_png(out_dir / "contact_sheet.png")


def test_augmented_scans_have_the_brains_of_their_recipients_so_that_no_fold_looks_for_them(augmented, cohort):
    out_dir, _, _ = augmented
    brains = {case.subject: case.brain for case in with_brains(pair_cases([cohort / "Scans"], None), None)}
    made = augmented_cases(out_dir)
    assert made and None not in brains.values()
    for case in made:
        np.testing.assert_array_equal(np.load(case.brain), np.load(brains[case.subject]))


def test_provenance_names_slices_that_hold_the_lesion(augmented, cohort):
    out_dir, _, _ = augmented
    masks = {case.name: np.load(case.mask) for case in pair_cases([cohort / "Scans"], [cohort / "Masks"])}
    for origin in json.loads((out_dir / "provenance.json").read_text()).values():
        new = np.load(out_dir / "Masks" / origin["mask"])
        for lesion in origin["lesions"]:
            assert new[..., lesion["slice"]].any() and masks[lesion["scan"]][..., lesion["donor_slice"]].any()


def test_augmenting_again_makes_the_same_scans_and_a_stopped_run_goes_on(augmented, cohort, tmp_path):
    out_dir, command, _ = augmented
    provenance = json.loads((out_dir / "provenance.json").read_text())
    elsewhere = [tmp_path if part == out_dir else part for part in command]
    run_script(*elsewhere, "--num_workers", 2, cwd=tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text()) == provenance
    name = next(iter(provenance))
    for path in (tmp_path / "Scans" / name, next((tmp_path / "Provenance").glob(f"{name[:-4]}.json"))):
        assert path.exists()
        path.unlink()
    kept = list(provenance)[1]
    stamp = (tmp_path / "Scans" / kept).stat().st_mtime_ns
    run_script(*elsewhere, cwd=tmp_path)
    for written in provenance:
        np.testing.assert_array_equal(np.load(tmp_path / "Scans" / written), np.load(out_dir / "Scans" / written))
    assert (tmp_path / "Scans" / kept).stat().st_mtime_ns == stamp


def test_no_fold_trains_on_a_lesion_of_its_test_or_validation_subjects(augmented, cohort):
    out_dir, _, _ = augmented
    subjects = sorted({case.subject for case in pair_cases([cohort / "Scans"], [cohort / "Masks"])})
    made = augmented_cases(out_dir)
    assert made and all(len(origins) > 1 for origins in made.values())
    for held_out in subjects:
        fold = Fold([s for s in subjects if s != held_out], [], [held_out])
        used = usable_augmented(made, fold)
        assert all(held_out not in made[case] for case in used)
        lent = [case for case, origins in made.items() if held_out in origins]
        assert len(used) == len(made) - len(lent)
    assert usable_augmented(made, Fold(subjects, [], [])) == list(made)


def test_slices_of_augmented_scans_meet_the_masks_of_their_own_copy(augmented, cohort, tmp_path):
    out_dir, _, _ = augmented
    for part in ("Scans", "Masks", "Brains"):
        (tmp_path / part).mkdir()
        for path in [*(cohort / part).iterdir(), *(out_dir / part).iterdir()]:
            (tmp_path / part / path.name).symlink_to(path)
    cases = with_brains(pair_cases([tmp_path / "Scans"], [tmp_path / "Masks"]), [tmp_path / "Brains"])
    grid = Grid((1, 24, 25, 29))
    table = cut_cohort(cases, grid, partial(prepare_scan, grid=grid, brains=tmp_path / "none"), tmp_path / "slices")
    assert table.volume.nunique() == len(cases) > len(list((cohort / "Scans").iterdir()))
    voxels = table.groupby("volume").lesion_voxels.sum()
    assert all(voxels[case.name] == np.count_nonzero(np.load(case.mask)) for case in cases)
    for scan, mask in zip(table.scan.map(Path), table["mask"].map(Path), strict=True):
        assert scan.name.split("_augmented")[1:] == mask.name.split("_augmented")[1:]


def test_augmented_scans_are_no_cohort_to_split(augmented, tmp_path):
    out_dir, _, _ = augmented
    command = ["cross_validation.py", "--scans_dir", out_dir / "Scans", "--masks_dir", out_dir / "Masks"]
    error = run_script(*command, "--model_prefix", "a", "--rpn_model_prefix", "b", cwd=tmp_path, code=2).err
    assert "--augmented_dir" in error.splitlines()[-1]


def test_one_subject_alone_has_nobody_to_take_lesions_from(cohort, tmp_path):
    for part in ("Scans", "Masks"):
        (tmp_path / part).mkdir()
        first = sorted((cohort / part).iterdir())[0]
        (tmp_path / part / first.name).write_bytes(first.read_bytes())
    command = ["-m", "augmentation", "--scans_dir", tmp_path / "Scans", "--masks_dir", tmp_path / "Masks"]
    error = run_script(*command, "--out_dir", tmp_path / "out", cwd=tmp_path, code=2).err
    assert "holds one subject" in error.splitlines()[-1] and not (tmp_path / "out").exists()
