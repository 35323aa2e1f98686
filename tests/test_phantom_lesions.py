"""Lesions of the synthetic cohort: the statistics of real ones, or the shapes and places of real masks."""

import json
from dataclasses import replace
from functools import lru_cache

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label

from data.phantom.cohort import make_subject, write_cohort
from data.phantom.heads import MIDLINE_MM, ORIGIN_MM, Grid, Head, load_templates
from data.phantom.lesions import draw_lesions, plan_lesions
from data.phantom.masks import draw_real_lesions, list_masks
from data.phantom.statistics import ACUTE, ARTERIES, CHRONIC, Law, draw_volumes, even_numbers
from data.settings import PhantomSettings
from utils.errors import UserError

SETTINGS = PhantomSettings(n_subjects=2, spacing=(5.0,) * 3, seed=3, healthy_fraction=0.0, ext=".nii.gz")
NEIGHBOURS = np.ones((3, 3, 3))


@lru_cache
def template_head(spacing: float) -> Head:
    """The template itself, neither warped nor shrunk."""
    grid = Grid((spacing,) * 3)
    places = np.stack(np.meshgrid(*(axis.astype(np.float32) for axis in grid.axes_mm), indexing="ij"))
    maps = load_templates()
    nearest = np.ix_(*(np.rint(axis).astype(int) for axis in grid.axes_mm))
    tissue = (maps["gm"] + maps["wm"])[nearest] > 0.5
    return Head(grid, places, places[0], places[0], places[0], tissue, tissue)


def volumes_of(law: Law, n: int = 300) -> list[np.ndarray]:
    return [draw_volumes(law, even_numbers(7, i), np.random.default_rng([7, i]))[0] for i in range(n)]


@pytest.mark.parametrize(
    "law, median_cm3, most_cm3, most_lesions, small",
    [(ACUTE, 12.7, 197, 14, (0.1, 0.35)), (CHRONIC, 4.3, 136, 8, (0.03, 0.28))],
)
def test_sizes_and_numbers_are_those_of_real_scans(law, median_cm3, most_cm3, most_lesions, small):
    scans = volumes_of(law)
    totals, numbers, lesions = [s.sum() for s in scans], [len(s) for s in scans], np.concatenate(scans)
    assert np.quantile(totals, [0.5, 0.95]) == pytest.approx([median_cm3, most_cm3], rel=0.2)
    assert np.median(numbers) == 2 and np.quantile(numbers, 0.95) == pytest.approx(most_lesions, abs=2)
    assert np.mean(lesions < small[0]) == pytest.approx(small[1], abs=0.06)


def test_a_few_scans_have_all_sizes():
    for seed in range(5):
        shares = np.sort([even_numbers(seed, i)[0] for i in range(20)])
        assert np.abs(shares - (np.arange(20) + 0.5) / 20).max() < 0.1


def test_three_scans_of_four_are_one_sided_and_half_of_the_strokes_are_the_middle_cerebral_artery_s():
    plans = [plan_lesions(ACUTE, even_numbers(7, i), np.random.default_rng([7, i])) for i in range(120)]
    sides = [{np.sign(lesion.centre[0] - MIDLINE_MM) for lesion in plan} for plan in plans]
    assert 0.6 < np.mean([len(s) == 1 for s in sides]) < 0.9
    assert 0.4 < np.mean([plan[0].artery.startswith("MCA") for plan in plans]) < 0.6
    assert 0.35 < np.mean([plan[0].centre[0] > MIDLINE_MM for plan in plans]) < 0.65


def test_large_infarcts_of_the_cerebrum_stay_on_their_side():
    cerebral = [
        lesion
        for seed in range(200)
        for lesion in plan_lesions(CHRONIC, np.array([0.97, (seed + 0.5) / 200, 0.5]), np.random.default_rng(seed))
        if lesion.volume_cm3 > 60 and ARTERIES[lesion.artery].trunk != "cerebellum"
    ]
    assert len(cerebral) > 100 and all(lesion.side for lesion in cerebral)


def test_lesions_have_their_volumes_at_any_spacing_and_do_not_touch():
    fine, coarse = template_head(3.0), template_head(4.0)
    for index in range(6):
        plan = plan_lesions(ACUTE, even_numbers(2, index), np.random.default_rng(index))
        planned_cm3 = sum(lesion.volume_cm3 for lesion in plan)
        for head, s in ((fine, 3.0), (coarse, 4.0)):
            mask = draw_lesions(head, ACUTE, even_numbers(2, index), 0.5, np.random.default_rng(index)) > 0.5
            assert mask.any() and not (mask & ~head.tissue).any()
            assert mask.sum() * s**3 / 1000 == pytest.approx(planned_cm3, rel=0.15, abs=0.3)
            assert label(mask, NEIGHBOURS)[1] <= len(plan)


def test_edges_fade_more_differently_with_variety():
    def widths(variety: float) -> list[float]:
        law, head = replace(ACUTE, volume_cm3=(30.0, 30.1, 30.2, 30.3, 30.4)), template_head(3.0)
        opacities = [draw_lesions(head, law, even_numbers(1, i), variety, np.random.default_rng(i)) for i in range(6)]
        return [np.sum((o > 0.1) & (o < 0.9)) / np.sum(o > 0.5) for o in opacities]

    assert np.std(widths(1.0)) > 1.5 * np.std(widths(0.0))


# --- --lesion_masks ------------------------------------------------------------------------------------


def write_ball(folder, name: str, centre_mm, radius: float, spacing: float = 2.0, turned: bool = False):
    """A mask of one ball in MNI mm; `turned` stores it from right to left on a grid that is tilted."""
    folder.mkdir(exist_ok=True)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    if turned:
        affine[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.05, 0.1) @ np.diag([-spacing, spacing, spacing])
    affine[:3, 3] = np.array(centre_mm) - affine[:3, :3] @ np.full(3, 24)
    places = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    mask = np.linalg.norm(places - centre_mm, axis=-1) < radius
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / name)


def test_real_masks_give_place_size_and_side_whatever_their_affine(tmp_path):
    write_ball(tmp_path / "masks", "a.nii.gz", (34, -24, 34), 10)
    write_ball(tmp_path / "masks", "b.nii", (-34, -24, 34), 10, 1.5, turned=True)
    head, sides = template_head(3.0), set()
    for seed in range(8):
        mask = draw_real_lesions(head, list_masks(tmp_path / "masks"), 0.0, np.random.default_rng(seed)) > 0.5
        centre = head.template_mm[:, mask].mean(1) - ORIGIN_MM
        sides.add(np.sign(centre[0]))
        np.testing.assert_allclose(np.abs(centre), (34, 24, 34), atol=2)
        whole = 4 / 3 * np.pi * 10**3
        assert 0.6 * whole < mask.sum() * 27 < 1.4 * whole  # grown or eroded a little
    assert sides == {-1, 1}


def test_masks_make_the_files_with_the_seed_and_are_kept_with_a_digest(tmp_path):
    for name, centre in {"a.nii": (30, -20, 25), "b.nii": (-40, 20, 5), "c.nii.gz": (20, -60, -30)}.items():
        write_ball(tmp_path / "masks", name, centre, 10)
    settings = replace(SETTINGS, lesion_masks=str(tmp_path / "masks"))
    for name in "one", "two":
        write_cohort(settings, tmp_path / name)
    files = sorted((tmp_path / "one/Masks").iterdir())
    assert [f.read_bytes() for f in files] == [(tmp_path / "two/Masks" / f.name).read_bytes() for f in files]
    assert all(make_subject(settings, index).mask.any() for index in range(2))
    kept = json.loads((tmp_path / "one/phantom.json").read_text())["lesion_masks"]
    assert kept["masks"] == 3 and len(kept["digest"]) == 32
    write_ball(tmp_path / "masks", "a.nii", (30, -20, 20), 10)
    with pytest.raises(UserError, match="other lesion masks"):
        write_cohort(settings, tmp_path / "one")


def spoil(folder, how: str) -> None:
    write_ball(folder, "fine.nii", (30, -20, 25), 10)
    image = nib.load(folder / "fine.nii")
    voxels, affine = np.asarray(image.dataobj), image.affine.copy()
    if how == "no .nii":
        (folder / "fine.nii").unlink()
    elif how == "no affine":
        np.save(folder / "bad.npy", voxels)
    elif how == "not binary":
        nib.save(nib.Nifti1Image(voxels * 0.3, affine), folder / "bad.nii")
    elif how == "no lesion":
        nib.save(nib.Nifti1Image(voxels * 0, affine), folder / "bad.nii")
    elif how == "outside":
        affine[:3, 3] += 200
        nib.save(nib.Nifti1Image(voxels, affine), folder / "bad.nii")
    elif how == "set its sform":
        nib.save(nib.Nifti1Image(voxels, None), folder / "bad.nii")


@pytest.mark.parametrize("how", ["no .nii", "no affine", "not binary", "no lesion", "outside", "set its sform"])
def test_folder_that_gives_no_lesions_is_refused_before_anything_is_written(tmp_path, how):
    spoil(tmp_path / "masks", how)
    with pytest.raises(UserError, match=how):
        write_cohort(replace(SETTINGS, lesion_masks=str(tmp_path / "masks")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mask_between_coarse_voxels_still_gives_a_lesion(tmp_path):
    write_ball(tmp_path / "masks", "small.nii", (30, -20, 25), 1.5, 1.0)
    settings = replace(SETTINGS, spacing=(8.0,) * 3, lesion_masks=str(tmp_path / "masks"))
    assert all(make_subject(settings, index).mask.sum() == 1 for index in range(2))
