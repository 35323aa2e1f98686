"""The networks' grid: its voxel size, scans brought onto it about their brain, and what comes back of them."""

import re

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.files.names import PREDICTION_SUFFIX
from data.files.space import Space, resample, share_outside
from data.files.volumes import read_volume, write_like, write_volume
from data.phantom.cohort import make_subject
from data.scans.brain import with_brains
from data.scans.cohort import Case, pair_cases
from data.scans.grid import Grid, choose_spacing
from data.scans.open import Cohort
from data.scans.prepared import PreparedScan, cached_scan, prepare_scan
from data.settings import PhantomSettings
from models.checkpoints import grid_at_test, load_model, require_spacing
from models.segmentation.module import StrokeFormer
from tests.drawn import admit, ball, dice
from tests.running import GRID, QUICK, ROI, run_script
from tests.test_refusals import refused
from utils.errors import UserError

TURN = nib.eulerangles.euler2mat(0.2, -0.15, 0.1)
AFFINES = {  # (H, W, D) in the order of the file to mm
    "RAS": np.diag([1.0, 1, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1, 1]),
    "thick slices": np.diag([0.8, 0.8, 3, 1]),
    "coronal": np.array([[1.0, 0, 0, 5], [0, 0, 1.5, -9], [0, -1, 0, 3], [0, 0, 0, 1]]),
    "oblique": nib.affines.from_matvec(TURN @ np.diag([-1.0, -1, 2]), (40, 50, -30)),
}


def case_of(folder, scan, brain, mask=None, affine=None, name="sub-01") -> Case:
    """Files of arrays (D, H, W) whose brain is given; NIfTI with an affine (RAS), .npy without."""
    ext = ".npy" if affine is None else ".nii.gz"
    parts = {"Scans/{}_T1w": scan, "Masks/{}_label-L_mask": mask, "Brains/{}_desc-brain_mask": brain}
    paths = [folder / f"{part.format(name)}{ext}" for part in parts]
    for path, array in zip(paths, parts.values(), strict=True):
        if array is not None:
            write_volume(path, array[None].astype(np.float32 if array is scan else np.uint8), affine)
    return Case(name[4:], None, paths[0], None if mask is None else paths[1], paths[2])


def certainties(mask: np.ndarray) -> np.ndarray:
    """Class probabilities (2, D, H, W) of a network that is sure of a mask."""
    return np.stack([~mask, mask]).astype(np.float32)


def prepared_as(own: Space, space: Space) -> PreparedScan:
    return PreparedScan("a.npy", "1", None, None, None, space, own, True)


# --- placing and bringing back ---------------------------------------------------------------------------

SHAPES = st.tuples(*[st.integers(3, 12)] * 3)


@settings(max_examples=60, deadline=None)
@given(SHAPES, SHAPES, st.tuples(*[st.tuples(st.integers(0, 11), st.integers(1, 12))] * 3), st.sampled_from([*AFFINES]))
def test_what_is_not_resampled_comes_back_to_the_voxel(shape, grid_shape, box, axes):
    """Whatever is odd or even, larger or smaller, and wherever the brain is; background beyond the grid."""
    brain = np.zeros(shape, bool)
    brain[tuple(slice(low % size, low % size + width) for (low, width), size in zip(box, shape, strict=True))] = True
    own = Space(shape, AFFINES[axes])
    space = Grid((1, *grid_shape)).space_about(brain, own)
    probabilities = np.random.default_rng(0).random((2, *shape), np.float32)
    on_grid = resample(probabilities, own, space, outside=[1, 0])
    back = prepared_as(own, space).to_own_grid(on_grid)
    kept = resample(np.ones((1, *grid_shape), bool), space, own)[0]
    assert back.shape == probabilities.shape and kept.sum() == np.prod(np.minimum(shape, grid_shape))
    np.testing.assert_array_equal(back[:, kept], probabilities[:, kept])
    np.testing.assert_array_equal(back[:, ~kept], np.broadcast_to([[1], [0]], (2, np.count_nonzero(~kept))))


@pytest.mark.parametrize("spacing_mm", [None, (2.0, 2.0, 2.0), (1.5, 3.0, 2.5)])
@pytest.mark.parametrize("axes", AFFINES)
def test_prediction_comes_back_to_the_shape_orientation_affine_and_both_forms_of_its_scan(tmp_path, axes, spacing_mm):
    stored, _ = ball((40, 48, 44), 16)
    image = nib.Nifti1Image(stored, AFFINES[axes])
    image.header.set_sform(AFFINES[axes], 2)
    image.header.set_qform(AFFINES[axes], 1)
    image.to_filename(tmp_path / "scan_T1w.nii.gz")
    volume = read_volume(tmp_path / "scan_T1w.nii.gz")
    _, brain = ball(volume.array.shape[1:], 14)
    _, lesion = ball(volume.array.shape[1:], 8, middle=(3, -4, 2))
    for name, mask in (("brain", brain), ("lesion", lesion)):
        write_like(tmp_path / f"{name}_mask.nii.gz", mask, tmp_path / "scan_T1w.nii.gz")
    case = Case("1", None, *(tmp_path / f"{name}.nii.gz" for name in ("scan_T1w", "lesion_mask", "brain_mask")))
    prepared = prepare_scan(case, Grid((1, 60, 60, 60), spacing_mm=spacing_mm), tmp_path / "none are found")
    assert prepared.spacing_mm == pytest.approx(spacing_mm or volume.spacing_mm)
    assert prepared.own_spacing_mm == pytest.approx(volume.spacing_mm)
    assert not prepared.to_own_grid(certainties(prepared.brain))[1][~brain].any()
    back = prepared.to_own_grid(certainties(prepared.mask)).argmax(0)
    write_like(tmp_path / "prediction.nii.gz", back, case.scan)
    written = nib.load(tmp_path / "prediction.nii.gz")
    assert written.shape == stored.shape and nib.aff2axcodes(written.affine) == nib.aff2axcodes(image.affine)
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(written.header[field], image.header[field], field)
    # A sphere of 16 voxels, twice resampled: half a voxel along all of its border is 18 % of it.
    assert dice(read_volume(tmp_path / "prediction.nii.gz").array[0] > 0, lesion) > (0.85 if spacing_mm else 0.9999)


@pytest.mark.parametrize("middle", [(0, 0, 0), (0, 0, 10), (-8, 3, -9)])
@pytest.mark.parametrize("spacing_mm", [None, (1.5, 1.5, 1.5)])
def test_brain_is_in_the_middle_of_the_grid_wherever_it_is_in_the_scan(tmp_path, middle, spacing_mm):
    scan, brain = ball((50, 48, 60), 7, middle=middle)
    case = case_of(tmp_path, scan, brain, affine=np.eye(4))
    prepared = prepare_scan(case, Grid((1, 18, 20, 22), spacing_mm=spacing_mm), tmp_path / "none are found")
    centre = np.argwhere(prepared.brain).mean(0)
    # A grid begins at a voxel of the scan, up to half of one away from where it should.
    assert (np.abs(centre - (np.array(prepared.brain.shape) - 1) / 2) <= 0.75).all()


def test_networks_see_nothing_but_the_brain_between_0_and_1(tmp_path):
    scan, head = ball()
    _, brain = ball(radius=6)
    scan[head & ~brain] = 500  # a bright skull
    prepared = prepare_scan(case_of(tmp_path, scan, brain), Grid((1, 20, 20, 20)), tmp_path / "none are found")
    assert prepared.scan.dtype == np.float16 and prepared.scan.min() == 0 and prepared.scan.max() == 1
    assert not prepared.scan[0][~prepared.brain].any() and np.median(prepared.scan[0][prepared.brain]) > 0.5
    assert prepared.brain.sum() == brain.sum()


def test_whole_slices_that_are_resized_come_back_to_their_place(tmp_path):
    scan, brain = ball()
    _, lesion = ball(radius=5, middle=(2, 1, -1))
    case = case_of(tmp_path, scan, brain, lesion)
    prepared = prepare_scan(case, Grid((1, 24, 99, 99), resize_to=(60, 45)), tmp_path / "none are found")
    assert prepared.mask.shape == (24, 60, 45) and prepared.mask.dtype == bool
    assert prepared.mask.sum() == pytest.approx(lesion.sum() * 60 / 30 * 45 / 26, rel=0.05)
    assert dice(prepared.to_own_grid(certainties(prepared.mask)).argmax(0) > 0, lesion) > 0.95


def test_one_head_is_nearly_the_same_on_the_grid_whatever_voxels_it_was_scanned_with(tmp_path):
    """Thick slices and coarse ones, both brought to 3 mm, where either has lost what the other still has."""
    prepared = []
    for name, spacing_mm in (("thick", (3.0, 1.0, 1.0)), ("even", (2.0, 2.0, 2.0))):
        subject = make_subject(PhantomSettings(spacing=spacing_mm, seed=3, healthy_fraction=0), 3)
        affine = np.diag([*np.roll(spacing_mm, -1), 1])
        case = case_of(tmp_path, subject.scan[0], subject.brain, subject.mask[0], affine, f"sub-{name}")
        prepared.append(prepare_scan(case, Grid((1, 60, 56, 64), spacing_mm=(3.0,) * 3), tmp_path / "none are found"))
    one, other = prepared
    there = resample(other.scan.astype(np.float32), other.space, one.space)[0]
    both = one.brain & resample(other.brain[None], other.space, one.space)[0]
    assert dice(one.brain, both) > 0.97
    # Each has noise and texture of its own, and a voxel at the border of two tissues differs by a share of their
    # contrast: the mean difference is some 0.05.
    assert np.corrcoef(one.scan[0][both].astype(float), there[both])[0, 1] > 0.9
    assert np.abs(one.scan[0] - there)[both].mean() < 0.07
    assert dice(one.mask, resample(other.mask[None], other.space, one.space)[0]) > 0.8


def test_default_grid_takes_atlas_volumes_whole_in_depth():
    brain = np.zeros((189, 197, 233), bool)
    brain[[0, 188], 98, 116] = True
    own = Space(brain.shape, np.eye(4))
    space = Grid((1, 189, 192, 192), spacing_mm=(1.0, 1.0, 1.0)).space_about(brain, own)
    assert share_outside(brain, own, space) == 0 and space.shape == (189, 192, 192)


def test_cached_scan_equals_the_prepared_one_and_follows_a_changed_file(tmp_path):
    scan, truth = ball()
    case = case_of(tmp_path, scan, truth, truth, np.diag([2.0, 2, 2, 1]))
    grid = Grid((1, 24, 32, 32), spacing_mm=(2.0, 1.5, 1.5))
    prepared, cached = prepare_scan(case, grid, tmp_path / "brains"), cached_scan(case, grid, tmp_path / "cache")
    for part in ("scan", "brain", "mask"):
        np.testing.assert_array_equal(getattr(cached, part), getattr(prepared, part))
    assert isinstance(cached.scan, np.memmap) and cached.own.is_close(prepared.own)
    assert cached.space.is_close(prepared.space) and cached.spacing_mm == pytest.approx((2, 1.5, 1.5))
    for path, part in ((case.mask, "mask"), (case.brain, "brain")):
        smaller = ball(radius=5)[1]
        write_volume(path, smaller[None].astype(np.uint8), np.diag([2.0, 2, 2, 1]))
        assert getattr(cached_scan(case, grid, tmp_path / "cache"), part).sum() < 0.5 * getattr(prepared, part).sum()


# --- what the grid cuts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing_mm", [None, (2.0, 2.0, 2.0), (1.0, 1.5, 4.0)])
@pytest.mark.parametrize("axes", ["RAS", "thick slices"])
def test_brain_larger_than_the_grid_is_refused_with_the_grid_that_it_needs(tmp_path, axes, spacing_mm):
    scan, brain = ball((30, 41, 44), 13, middle=(0, 2, -3))
    case = case_of(tmp_path, scan, brain, affine=AFFINES[axes])
    message = r"sub-01_T1w.+ has a brain larger than the grid, which cuts \d+% .+ give at least --scan_dim (.+), "
    with pytest.raises(UserError, match=message) as refusal:
        admit([case], Grid((1, 8, 20, 10), spacing_mm=spacing_mm), tmp_path / "none are found")
    needed = tuple(map(int, re.search(message, str(refusal.value))[1].split()))
    admit([case], Grid(needed, spacing_mm=spacing_mm), tmp_path / "none are found")


def test_brain_away_from_the_middle_of_the_scan_is_not_cut(tmp_path, capsys):
    scan, brain = ball((16, 16, 40), 6, middle=(0, 0, 10))
    admit([case_of(tmp_path, scan, brain)], Grid((1, 16, 16, 14)), tmp_path / "none are found")
    assert capsys.readouterr().out == ""


def test_small_loss_to_the_grid_is_told_and_the_worst_one_named(tmp_path, capsys):
    balls = {"16": ball((24, 24, 24), 8), "18": ball((24, 24, 24), 9)}  # by their width in voxels
    cases = [case_of(tmp_path, *drawing, name=f"sub-{width}") for width, drawing in balls.items()]
    admit(cases, Grid((1, 24, 24, 16)), tmp_path / "none are found")
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"--scan_dim cuts [12]\.\d% of the brain off in sub-18_T1w\.npy; give a larger one", line)


def test_lesion_that_the_grid_cuts_is_told(tmp_path, capsys):
    scan, brain = ball()
    lesion = np.zeros_like(brain)
    lesion[12, [6, 23], 13] = True  # the ends of the ball along H, of which a grid of 17 voxels has one
    case = case_of(tmp_path, scan, brain, lesion)
    admit([case], Grid((1, 24, 30, 26)), tmp_path / "none are found")
    assert "of the lesions off" not in capsys.readouterr().out
    admit([case], Grid((1, 24, 17, 26)), tmp_path / "none are found")
    assert "--scan_dim cuts 50% of the lesions off in sub-01_label-L_mask.npy; give a" in capsys.readouterr().out


def test_lesion_outside_the_brain_is_told(tmp_path, capsys):
    scan, brain = ball()
    lesion = np.zeros_like(brain)
    lesion[12, 13:17, 0:9] = True  # some of it is beyond the ball
    case = case_of(tmp_path, scan, brain, lesion)
    share = np.mean(~brain[lesion])
    admit([case], Grid((1, 24, 30, 26)), tmp_path / "none are found")
    line = f"{share:.0%} of the lesion voxels of sub-01_label-L_mask.npy lie outside the brain and are not looked at"
    assert 0.05 < share < 0.7 and capsys.readouterr().out.startswith(line)


# --- voxel size ------------------------------------------------------------------------------------------


def cases_of_sizes(folder, *sizes) -> list[Case]:
    """Scans with voxels of these sizes in mm; None for a .npy that does not tell."""
    affines = [None if size is None else np.diag([size, size, size, 1.0]) for size in sizes]
    return [case_of(folder, *ball(), affine=affine, name=f"sub-{i}") for i, affine in enumerate(affines)]


@pytest.mark.parametrize(
    ("sizes", "wanted", "spacing_mm", "line"),
    [
        ((1, 1, 1), None, 1, "Voxels of 1 x 1 x 1 mm (D x H x W; the median of the scans; --spacing sets another)\n"),
        (
            (3, 1, 1, None),
            None,
            1,
            "Voxels of 1 x 1 x 1 mm (D x H x W; the median of the scans; --spacing sets another); 1 scan of another "
            "size will be resampled\n",
        ),
        ((3, 1), None, 1, None),  # a size that there is, not the mean of two
        (
            (3, 1),
            (2.0, 2.0, 2.0),
            2,
            "Voxels of 2 x 2 x 2 mm (D x H x W; --spacing); 2 scans of another size will be resampled\n",
        ),
        ((None, None), (2.0, 2.0, 2.0), 2, "Voxels of 2 x 2 x 2 mm (D x H x W; --spacing)\n"),
        ((None, None), None, None, ""),
    ],
)
def test_voxel_size_is_the_median_of_the_scans_or_what_is_asked_for_and_said_once(
    tmp_path, capsys, sizes, wanted, spacing_mm, line
):
    chosen = choose_spacing(cases_of_sizes(tmp_path, *sizes), wanted, None)
    assert chosen == (None if spacing_mm is None else (spacing_mm,) * 3)
    said = capsys.readouterr().out
    assert said == line if line is not None else said.count("\n") == 1


def test_spacing_and_resize_to_are_refused_together_and_resize_to_alone_knows_no_voxel_size(tmp_path, capsys):
    cases = cases_of_sizes(tmp_path, 1)
    with pytest.raises(UserError, match="--spacing and --resize_to ask for two voxel sizes; give one of them"):
        choose_spacing(cases, (2.0, 2.0, 2.0), (20, 20))
    assert choose_spacing(cases, None, (20, 20)) is None and capsys.readouterr().out == ""


def test_scans_of_unknown_voxel_size_are_taken_for_the_networks_and_said_once(tmp_path, capsys):
    cases = cases_of_sizes(tmp_path, None, 2, None)
    grid = Grid((1, 24, 30, 26), spacing_mm=(2.0, 2.0, 2.0))
    admit(cases, grid, tmp_path / "none are found")
    assert capsys.readouterr().out == (
        "Unknown voxel size of 2 scans (e.g. sub-0_T1w.npy): 2 x 2 x 2 mm is used; give it in a cohort.csv beside "
        "their folder\n"
    )
    prepared = prepare_scan(cases[0], grid, tmp_path / "none are found")
    assert prepared.spacing_mm is None and prepared.own_spacing_mm is None
    np.testing.assert_array_equal(prepared.brain, ball()[1])  # nothing was resampled
    (tmp_path / "cohort.csv").write_text("scan,spacing_mm\nsub-0_T1w.npy,4 4 4\n")
    told = prepare_scan(cases[0], Grid((1, 48, 60, 52), spacing_mm=(2.0, 2.0, 2.0)), tmp_path / "none are found")
    assert told.own_spacing_mm == (4, 4, 4) and told.brain.sum() == pytest.approx(8 * prepared.brain.sum(), rel=0.1)


def test_network_of_unknown_voxel_size_takes_every_scan_as_it_is_and_says_so(tmp_path, capsys):
    cases = cases_of_sizes(tmp_path, 2, None)
    grid = Grid((1, 24, 30, 26))
    Cohort((cases,), grid).on(grid, None, "a.ckpt", None)
    admit(cases, grid, tmp_path / "none are found")
    assert capsys.readouterr().out == (
        "The network was trained on scans of unknown voxel size: these are taken as they are\n"
    )
    for case in cases:
        prepared = prepare_scan(case, Grid((1, 24, 30, 26)), tmp_path / "none are found")
        np.testing.assert_array_equal(prepared.brain, ball()[1])


# --- checkpoints -----------------------------------------------------------------------------------------


def other_checkpoint(path, source, **changes):
    """A copy of a checkpoint whose grid is another."""
    checkpoint = torch.load(source, weights_only=True)
    checkpoint["grid"] = checkpoint["grid"] | changes if changes else None
    torch.save(checkpoint, path)
    return path


def test_checkpoints_tell_the_grid_that_they_learned_on(workspace, tmp_path):
    expected = Grid((1, 24, 25, 29), None, (8.0, 8.0, 8.0))
    for path in (workspace.rpn, workspace.seg):
        assert torch.load(path, weights_only=True)["grid"]["orientation"] == "RAS"
    model = load_model(StrokeFormer, workspace.seg)
    assert model.grid == expected == grid_at_test(model, None, None, "")
    assert grid_at_test(model, [1, 30, 30, 30], None, "") == Grid((1, 30, 30, 30), None, (8.0, 8.0, 8.0))
    with pytest.raises(UserError, match=r"--resize_to \[40, 40\], but a.ckpt was trained with None; leave it out"):
        grid_at_test(model, None, [40, 40], "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt was trained on voxels of 8 x 8 x 8 mm, not 3 x 1 x 1; cut them anew"):
        require_spacing((3, 1, 1), model, "a.ckpt", "cut them anew")
    require_spacing((8.01, 8, 8), model, "a.ckpt", "")
    require_spacing(None, model, "a.ckpt", "")


def test_checkpoint_that_tells_no_grid_is_used_and_one_of_another_orientation_is_not(workspace, tmp_path):
    old = load_model(StrokeFormer, other_checkpoint(tmp_path / "old.ckpt", workspace.seg))
    assert grid_at_test(old, [1, 24, 25, 29], None, "") == Grid((1, 24, 25, 29))
    with pytest.raises(UserError, match=r"lps\.ckpt was trained on scans in LPS, not RAS; train it anew"):
        load_model(StrokeFormer, other_checkpoint(tmp_path / "lps.ckpt", workspace.seg, orientation="LPS"))


def test_slices_of_another_voxel_size_than_the_networks_are_refused(workspace, tmp_path):
    finer = other_checkpoint(tmp_path / "finer.ckpt", workspace.rpn, spacing_mm=[3, 3, 3])
    command = ["test_rpn.py", "--scans", workspace.slices, "--masks", workspace.slice_masks, *ROI]
    line = refused(*command, "--ckpt_path", finer, cwd=tmp_path)
    assert f"{finer} was trained on voxels of 3 x 3 x 3 mm, not 8 x 8 x 8; cut the slices with --spacing" in line


def test_stages_of_two_voxel_sizes_are_refused_together(workspace, tmp_path):
    finer = other_checkpoint(tmp_path / "finer.ckpt", workspace.rpn, spacing_mm=[3, 3, 3])
    test = ["test_strokeformer.py", "--scans", workspace.scans, "--ckpt_path", workspace.seg, *GRID]
    line = refused(*test, "--rpn_ckpt_path", finer, cwd=tmp_path)
    assert f"{finer} was trained on voxels of 3 x 3 x 3 mm, not 8 x 8 x 8; take a network of stage 1" in line
    train = ["train_strokeformer.py", "--train_scans", workspace.scans, "--train_masks", workspace.masks]
    train += [
        "--val_scans",
        workspace.scans,
        "--val_masks",
        workspace.masks,
        "--model_prefix",
        "a",
        *GRID,
        *ROI,
        *QUICK,
    ]
    line = refused(*train, "--rpn_ckpt_path", workspace.rpn, "--spacing", 6, 6, 6, cwd=tmp_path)
    assert "was trained on voxels of 8 x 8 x 8 mm, not 6 x 6 x 6; take a network of stage 1" in line


def test_scan_of_another_voxel_size_and_orientation_is_segmented_on_its_own_grid(workspace, tmp_path):
    """As a user gives it: stored as LPS, of 7 x 6 x 9 mm, its brain yet to be found; its mask gives a score."""
    folder = tmp_path / "one"
    run_script(
        *["-m", "data.phantom", "--out_dir", folder, "--n_subjects", 1, "--spacing", 9, 7, 6, "--ext", ".nii.gz"],
        *["--healthy_fraction", 0],
        cwd=tmp_path,
    )
    for path in (*(folder / "Scans").iterdir(), *(folder / "Masks").iterdir()):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS"))
        image.as_reoriented(turn).to_filename(path)
    scan = nib.load(next((folder / "Scans").iterdir()))
    done = run_script(
        *["test_strokeformer.py", "--scans", folder / "Scans", "--masks", folder / "Masks", "--model_name", "one"],
        *["--ckpt_path", workspace.seg, "--rpn_ckpt_path", workspace.rpn, "--score_threshold", 0.01],
        cwd=tmp_path,
    )
    (path,) = (tmp_path / "scores/one/predictions").glob(f"*{PREDICTION_SUFFIX}.nii.gz")
    written = nib.load(path)
    assert written.shape == scan.shape and nib.aff2axcodes(written.affine) == ("L", "P", "S")
    np.testing.assert_array_equal(written.affine, scan.affine)
    assert (written.header["sform_code"], written.header["qform_code"]) == (
        scan.header["sform_code"],
        scan.header["qform_code"],
    )
    (brain,) = (tmp_path / "scores/one/brains").glob("*_desc-brain_mask.nii.gz")
    assert (
        nib.load(brain).shape == scan.shape and not np.asarray(written.dataobj)[nib.load(brain).get_fdata() == 0].any()
    )
    assert "dice" in done.out and (tmp_path / "scores/scores.csv").exists()


def test_cohort_of_mixed_voxel_sizes_is_cut_on_one_grid(tmp_path):
    """Slices tell the voxel size of the grid that they were cut on, not that of their scan."""
    for size, name in ((2.0, "sub-01"), (2.0, "sub-02"), (3.0, "sub-03")):
        scan, brain = ball(radius=20 / size)
        case_of(tmp_path, scan, brain, ball(radius=6 / size)[1], np.diag([size, size, size, 1]), name)
    folders = ["--scans_dir", tmp_path / "Scans", "--masks_dir", tmp_path / "Masks", "--ext", ".nii.gz"]
    done = run_script("-m", "data.slices", *folders, "--scan_dim", 1, 24, 26, 28, "--out_dir", "slices", cwd=tmp_path)
    assert "1 scan of another size will be resampled" in done.out
    lines = (tmp_path / "slices/slices.csv").read_text().splitlines()
    assert len({line.split(",")[0].split("_slice")[0] for line in lines[1:]}) == 3
    assert all(line.split(",")[6] == "2.0 2.0 2.0" for line in lines[1:])
    brains = [np.load(path).sum() for path in sorted((tmp_path / "slices/Brains").glob("*.npy"))]
    assert brains == pytest.approx([brains[0]] * 3, rel=0.05)  # one ball of 20 mm
    assert [case.brain is not None for case in with_brains(pair_cases([tmp_path / "Scans"], None), None)] == [True] * 3
