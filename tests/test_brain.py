"""Where the brain of a scan comes from: a mask that was given, a stripped scan, deepbet or, failing these, the head."""

import nibabel as nib
import numpy as np
import pytest
import torch
from deepbet import BrainExtraction

from data.files.space import Space, centred_space, resample
from data.files.volumes import read_volume, write_volume
from data.phantom.cohort import make_subject
from data.scans.brain import _deepbet, find_brain, is_stripped, read_brain, with_brains
from data.scans.checks import check_headers
from data.scans.cohort import pair_cases
from data.scans.grid import Grid
from data.scans.head import head_mask
from data.settings import PhantomSettings
from tests.drawn import admit, ball, dice
from tests.running import ROOT
from utils.errors import UserError

REAL = ROOT.parent / "shared/real"  # not part of the project; see its README.md
real = pytest.mark.skipif(not any(REAL.rglob("*.nii.gz")), reason="no real scans beside the project")

GRID = Grid((1, 24, 30, 26))  # that of `ball`
FOUR_MM, EIGHT_MM = np.diag([4.0, 4, 4, 1]), np.diag([8.0, 8, 8, 1])  # at 8 mm the head of `ball` has 1.6 L


class Networks:
    """Stands for deepbet: its first network sees all of a stripped scan as brain and nothing of another; its second
    one takes what is brighter than 80 for brain.

    runs: how often the second one was asked.
    """

    def __init__(self, stripped: bool = False) -> None:
        self.stripped, self.runs = stripped, 0

    def bbox_model(self, coarse):
        return (coarse.new_ones if self.stripped else coarse.new_zeros)((1, 2, *coarse.shape[2:]))

    def run_model(self, scan: np.ndarray) -> np.ndarray:
        self.runs += 1
        return (scan > 80).astype(np.float32)

    def postprocess(self, mask: np.ndarray) -> np.ndarray:
        return mask


@pytest.fixture
def networks(monkeypatch) -> Networks:
    found = Networks()
    monkeypatch.setattr("data.scans.brain._deepbet", lambda: found)
    return found


def skull(bright: float = 100, radius: float = 7) -> tuple[np.ndarray, np.ndarray]:
    """A ball of a brain in a ball of a head of 60; the scan (D, H, W) and the brain."""
    scan, _ = ball()
    _, brain = ball(radius=radius)
    scan[brain] = bright
    return scan, brain


def brain_of(scan: np.ndarray, contrast: str | None, affine=None) -> np.ndarray | None:
    """`find_brain` in a scan (D, H, W) of 8 mm or of an affine."""
    return find_brain(scan, head_mask(scan), contrast, Space(scan.shape, EIGHT_MM if affine is None else affine))


def put(folder, name: str, array: np.ndarray, affine=None) -> None:
    write_volume(folder / name, array[None].astype(np.float32 if "mask" not in name else np.uint8), affine)


def cases_in(root):
    return pair_cases([root / "Scans"], None)


# --- given ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "masks",
    [
        ("sub-01_T1w_bet_mask", "sub-02_T1w_bet_mask"),  # HD-BET
        ("sub-01_desc-brain_mask", "sub-02_desc-brain_mask"),  # BIDS, fMRIPrep
        ("sub-01_space-T1w_desc-brain_mask", "sub-02_res-1_desc-brain_mask"),
        ("sub-01_stripmask", "sub-02_stripmask"),  # SynthStrip
        ("sub-01_T1w_brain_mask", "A_sub-02_brainmask"),  # FSL BET; and one that sorts first
        ("sub-01_mask", "sub-02_mask"),
        ("sub-01", "sub-02"),
    ],
)
def test_given_mask_belongs_to_the_scan_of_its_subject_whatever_tool_named_it(tmp_path, masks):
    for subject, mask in zip(("01", "02"), masks, strict=True):
        put(tmp_path, f"Scans/sub-{subject}_T1w.nii.gz", ball()[0])
        put(tmp_path, f"made elsewhere/{mask}.nii.gz", np.ones((24, 30, 26)))
    cases = with_brains(cases_in(tmp_path), [tmp_path / "made elsewhere"])
    assert [case.brain.name for case in cases] == [f"{mask}.nii.gz" for mask in masks]


def test_given_masks_are_told_apart_by_session_acquisition_and_run_in_any_order(tmp_path):
    names = ["ses-1_acq-a_run-1", "ses-1_acq-a_run-2", "ses-1_acq-b", "ses-2"]
    for number, name in enumerate(names):
        put(tmp_path, f"Scans/sub-01_{name}_T1w.npy", ball()[0])
        # Sorted by name, these come the other way round.
        put(tmp_path, f"Brains/{9 - number}_sub-01_{name}_desc-brain_mask.npy", np.ones((24, 30, 26)))
    cases = with_brains(cases_in(tmp_path), None)
    assert [case.brain.name[2:] for case in cases] == [f"sub-01_{name}_desc-brain_mask.npy" for name in names]


def test_masks_that_could_be_of_either_run_are_refused(tmp_path):
    for run in (1, 2):
        put(tmp_path, f"Scans/sub-01_run-{run}_T1w.npy", ball()[0])
    put(tmp_path, "Brains/sub-01_desc-brain_mask.npy", np.ones((24, 30, 26)))
    with pytest.raises(UserError, match=r"sub-01_desc-brain_mask\.npy lacks run-, which tells"):
        with_brains(cases_in(tmp_path), None)


def test_given_mask_goes_before_what_would_be_found_and_folders_that_were_named_before_brains(tmp_path, networks):
    scan, _ = skull()
    put(tmp_path, "Scans/sub-01_T1w.npy", scan)
    (case,) = with_brains(cases_in(tmp_path), None)
    assert case.brain is None
    masks = {name: np.arange(scan.size).reshape(scan.shape) % 5 == k for k, name in enumerate(("Brains", "by hand"))}
    for name, mask in masks.items():
        put(tmp_path, f"{name}/sub-01_desc-brain_mask.npy", mask)
    for folders, name in ((None, "Brains"), ([tmp_path / "by hand"], "by hand")):
        cases = with_brains(cases_in(tmp_path), folders)
        admit(cases, GRID, tmp_path / "found")
        np.testing.assert_array_equal(read_brain(cases[0], tmp_path / "found"), masks[name])
    assert networks.runs == 0 and not (tmp_path / "found").exists()


def test_lesion_masks_beside_brain_masks_are_not_taken_for_them(tmp_path):
    put(tmp_path, "Scans/sub-01_T1w.npy", ball()[0])
    for name in ("label-L_mask", "desc-brain_mask", "label-GM_mask"):
        put(tmp_path, f"derivatives/sub-01_{name}.npy", np.ones((24, 30, 26)))
    (case,) = with_brains(cases_in(tmp_path), [tmp_path / "derivatives"])
    assert case.brain.name == "sub-01_desc-brain_mask.npy"


def test_scan_without_mask_is_refused_in_a_folder_that_was_named_and_looked_at_in_one_that_lies_there(tmp_path):
    for subject in ("01", "02"):
        put(tmp_path, f"Scans/sub-{subject}_T1w.npy", ball()[0])
    put(tmp_path, "Brains/sub-01_desc-brain_mask.npy", np.ones((24, 30, 26)))
    assert [case.brain is None for case in with_brains(cases_in(tmp_path), None)] == [False, True]
    with pytest.raises(UserError, match=r"Scans/sub-02_T1w\.npy has no brain mask in --brains_dir; add it"):
        with_brains(cases_in(tmp_path), [tmp_path / "Brains"])
    with pytest.raises(UserError, match=r"--brains_dir .*nowhere does not exist"):
        with_brains(cases_in(tmp_path), [tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("shape", "place", "complaint"),
    [((24, 30, 25), 0, r"has shape \(24, 30, 25\) \(D, H, W\)"), ((24, 30, 26), 5, "lies elsewhere than its scan")],
)
def test_given_mask_of_another_shape_or_place_is_refused(tmp_path, shape, place, complaint):
    moved = np.eye(4)
    moved[0, 3] = place
    put(tmp_path, "Scans/sub-01_T1w.nii.gz", ball()[0], np.eye(4))
    put(tmp_path, "Brains/sub-01_desc-brain_mask.nii.gz", np.ones(shape), moved)
    with pytest.raises(UserError, match=rf"sub-01_desc-brain_mask\.nii\.gz {complaint}"):
        check_headers(with_brains(cases_in(tmp_path), None), (1, 24, 30, 26), None)


@pytest.mark.parametrize(("values", "complaint"), [(3, "is not binary: it holds 3"), (0, "is empty")])
def test_given_mask_that_holds_no_brain_or_more_than_one_is_refused(tmp_path, values, complaint):
    put(tmp_path, "Scans/sub-01_T1w.npy", ball()[0])
    put(tmp_path, "Brains/sub-01_desc-brain_mask.npy", np.full((24, 30, 26), values))
    with pytest.raises(UserError, match=rf"sub-01_desc-brain_mask\.npy {complaint}"):
        admit(with_brains(cases_in(tmp_path), None), GRID, tmp_path / "found")


# --- found ---------------------------------------------------------------------------------------------


def test_stripped_scan_is_its_own_brain_and_the_second_network_is_not_asked(networks):
    scan, _ = ball()
    networks.stripped = True
    for contrast in ("T1w", "dwi"):
        np.testing.assert_array_equal(brain_of(scan, contrast), head_mask(scan))
    assert networks.runs == 0


@pytest.mark.parametrize("contrast", ["T1w", "T1", "t1c", "T1ce", "MPRAGE", "mp2rage", "UNIT1", None])
def test_brain_in_a_skull_is_what_deepbet_finds_in_t1w_and_in_scans_that_do_not_tell(networks, contrast):
    scan, brain = skull()
    np.testing.assert_array_equal(brain_of(scan, contrast), brain)
    assert networks.runs == 1


@pytest.mark.parametrize("contrast", ["FLAIR", "T2w", "dwi", "adc", "T1map", "ct"])
def test_deepbet_is_not_asked_about_contrasts_that_it_has_not_learned(networks, contrast):
    scan, _ = skull()
    assert brain_of(scan, contrast) is None and networks.runs == 0


@pytest.mark.parametrize(("bright", "radius"), [(70, 7), (100, 4)])
def test_nothing_and_too_little_are_no_brain(networks, bright, radius):
    scan, _ = skull(bright, radius)  # darker than what the network stands for, or 0.13 L and 9 % of the head
    for own in (Space(scan.shape, EIGHT_MM), None):
        assert find_brain(scan, head_mask(scan), "T1w", own) is None
    assert networks.runs == 2


def test_half_of_a_head_is_no_brain_if_it_has_less_than_0_3_litres(networks):
    scan, brain = skull()
    assert brain_of(scan, "T1w", FOUR_MM) is None
    np.testing.assert_array_equal(find_brain(scan, head_mask(scan), "T1w", None), brain)


@pytest.mark.parametrize("stripped", [False, True])
def test_brain_of_a_torso_is_refused_before_the_grid_is(tmp_path, networks, stripped):
    networks.stripped = stripped
    put(tmp_path, "Scans/sub-01_T1w.nii.gz", skull()[0], np.diag([12.0, 12, 12, 1]))
    litres = r"5\.3" if stripped else r"2\.5"
    match = (
        rf"sub-01_T1w\.nii\.gz shows a brain of {litres} L, outside the range of 0\.3 to 2\.2 L; crop .+ --brains_dir"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=match):
            admit(cases_in(tmp_path), Grid((1, 9, 9, 9)), tmp_path / "found")


@pytest.mark.parametrize("affine", [EIGHT_MM, None])
def test_brain_that_a_wrong_head_does_not_hold_is_not_cut_by_it_nor_is_what_is_added_to_it(networks, affine):
    scan, brain = skull()
    own = None if affine is None else Space(scan.shape, affine)
    np.testing.assert_array_equal(find_brain(scan, ~brain, "UNIT1", own), brain)
    scan[9:15, 17:20, 10:16] = 30  # an infarct on one side
    assert find_brain(scan, ~brain, "UNIT1", Space(scan.shape, EIGHT_MM))[9:15, 17:20, 10:16].mean() > 0.8


@pytest.mark.parametrize("ext", [".npy", ".nii.gz"])
def test_brain_is_found_once_and_kept_on_the_grid_of_its_scan(tmp_path, networks, ext):
    scan, brain = skull()
    affine = np.diag([-8.0, -7, 9, 1])  # stored as LPS
    put(tmp_path, f"Scans/sub-01_T1w{ext}", scan, affine)
    (case,) = cases_in(tmp_path)
    for _ in range(2):
        admit([case], GRID, tmp_path / "found")
        found = read_brain(case, tmp_path / "found")
        assert found.dtype == bool and dice(found, read_volume(case.scan).array[0] > 80) == 1
    assert networks.runs == 1 and found.sum() == brain.sum()
    (kept,) = (tmp_path / "found").iterdir()
    assert kept.name.startswith("sub-01_T1w_") and kept.name.endswith(f"_desc-brain_mask{ext}")
    if ext != ".npy":
        np.testing.assert_array_equal(nib.load(kept).affine, affine)
        np.testing.assert_array_equal(nib.load(kept).get_fdata(), brain.transpose(1, 2, 0))


def test_brain_of_a_changed_scan_or_of_other_code_is_found_anew(tmp_path, networks, monkeypatch):
    put(tmp_path, "Scans/sub-01_T1w.npy", skull()[0])
    (case,) = cases_in(tmp_path)
    admit([case], GRID, tmp_path / "found")
    scan, brain = skull(radius=6)
    put(tmp_path, "Scans/sub-01_T1w.npy", scan)
    admit([case], GRID, tmp_path / "found")
    np.testing.assert_array_equal(read_brain(case, tmp_path / "found"), brain)
    assert networks.runs == 2
    monkeypatch.setattr("data.scans.brain.PREPARATION_VERSION", "of another checkout")
    admit([case], GRID, tmp_path / "found")
    assert networks.runs == 3


def test_head_stands_for_the_brain_of_other_contrasts_with_a_skull_and_one_line_says_so(tmp_path, networks, capsys):
    scan, _ = skull()
    for name in ("sub-01_dwi", "sub-02_dwi", "sub-03_T1w"):
        put(tmp_path, f"Scans/{name}.npy", scan)
    cases = cases_in(tmp_path)
    capsys.readouterr()
    for _ in range(2):  # said again of what was kept
        admit(cases, GRID, tmp_path / "found")
        assert capsys.readouterr().out == (
            "No brain found in 2 scans with a skull (e.g. sub-01_dwi.npy): the whole head is used as the "
            "brain mask; give brain masks with --brains_dir, or a stripped scan\n"
        )
    np.testing.assert_array_equal(read_brain(cases[0], tmp_path / "found"), head_mask(scan))
    assert networks.runs == 1


def test_head_stands_for_a_brain_that_deepbet_does_not_find(tmp_path, networks, capsys):
    scan, _ = skull(bright=70)
    put(tmp_path, "Scans/sub-01_T1w.npy", scan)
    admit(cases_in(tmp_path), GRID, tmp_path / "found")
    assert "No brain found in 1 scan with a skull (e.g. sub-01_T1w.npy)" in capsys.readouterr().out
    np.testing.assert_array_equal(read_brain(cases_in(tmp_path)[0], tmp_path / "found"), head_mask(scan))


# --- deepbet itself ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic() -> tuple[np.ndarray, np.ndarray]:
    """A synthetic head at 4 mm, (D, H, W), and its true brain."""
    subject = make_subject(PhantomSettings(spacing=(4, 4, 4)), 0)
    return subject.scan[0], subject.brain


def test_deepbet_finds_the_brain_of_a_synthetic_head_whatever_its_scale_padding_and_broken_voxels(synthetic):
    scan, truth = synthetic
    brain = brain_of(scan, "T1w", FOUR_MM)
    assert dice(brain, truth) > 0.9  # deepbet's brain has no sulci
    widths = ((3, 0), (4, 6), (0, 5))
    changed = np.pad(1000 * scan + 500, widths, constant_values=500)
    changed[-1, -1, -1] = -32768
    assert dice(brain_of(changed, "T1w", FOUR_MM), np.pad(brain, widths)) > 0.98


def test_brain_is_what_deepbet_itself_says_though_its_first_network_runs_once_a_scan(synthetic, monkeypatch):
    scan, _ = synthetic
    ras = np.ascontiguousarray(scan.transpose(1, 2, 0))
    alone = BrainExtraction(no_gpu=True)
    expected = alone.postprocess(alone.run_model(ras.copy()) > 0.5)
    _deepbet.cache_clear()
    asked, network = [], torch.jit.ScriptModule.__call__
    monkeypatch.setattr(torch.jit.ScriptModule, "__call__", lambda self, x: asked.append(x.shape) or network(self, x))
    monkeypatch.setattr("data.scans.brain.complete_by_symmetry", lambda brain, head, own: brain)
    brain = brain_of(scan, "T1w", FOUR_MM)
    np.testing.assert_array_equal(brain, expected.transpose(2, 0, 1).astype(bool) & head_mask(scan))
    assert len(asked) == len({*asked}) == 2
    _deepbet.cache_clear()


def test_deepbet_tells_a_stripped_scan_from_a_head(synthetic):
    scan, truth = synthetic
    stripped = np.where(truth, scan, 0)
    for volume, expected in ((scan, False), (stripped, True)):
        assert is_stripped(np.ascontiguousarray(volume.transpose(1, 2, 0)), head_mask(volume)) == expected


def test_deepbet_that_sees_nothing_at_all_is_no_error(tmp_path, capsys):
    scan = np.zeros((20, 24, 22))
    scan[:3, :3, :3] = 60  # its own code fails on this one: it takes the largest of no components
    put(tmp_path, "Scans/sub-01_T1w.npy", scan)
    admit(cases_in(tmp_path), GRID, tmp_path / "found")
    assert "the whole head is used as the brain mask" in capsys.readouterr().out


# --- real scans ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_head():
    """A real T1w head with skull and face, 1 mm, stored as LIA, and its brain, (D, H, W)."""
    volume = read_volume(REAL / "t1w/sub-head_T1w.nii.gz")
    return volume, brain_of(volume.array[0], "T1w", volume.affine)


@real
def test_brain_of_a_real_head_has_the_volume_that_was_seen_to_be_right(real_head):
    volume, brain = real_head
    assert brain.sum() * np.prod(volume.spacing_mm) / 1000 == pytest.approx(1542, rel=0.02)


@real
def test_brain_of_a_real_head_does_not_depend_on_orientation_nor_on_voxel_size(real_head, tmp_path):
    volume, brain = real_head
    own = Space(brain.shape, volume.affine)
    coarse = centred_space(own, tuple(np.array(brain.shape) / 2 - 0.5), (128, 128, 128), (2.0, 2.0, 2.0))
    image = nib.load(REAL / "t1w/sub-head_T1w.nii.gz")
    for axes in ("RAS", "LPS"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        image.as_reoriented(turn).to_filename(tmp_path / f"{axes}.nii")
        np.testing.assert_array_equal(read_volume(tmp_path / f"{axes}.nii").array, volume.array)  # and so is its brain
    put(tmp_path, "Scans/sub-coarse_T1w.nii", resample(volume.array, own, coarse)[0], coarse.affine)
    found = read_brain(cases_in(tmp_path)[0], tmp_path / "found")
    assert found.sum() * np.prod(coarse.spacing_mm) / 1000 == pytest.approx(1542, rel=0.02)
    assert dice(resample(found[None], coarse, own)[0], brain) >= 0.98


@real
@pytest.mark.parametrize("contrast", ["dwi", "flair"])
def test_real_scans_of_isles_are_stripped_and_so_their_brain_is_their_head(contrast):
    volume = read_volume(next(REAL.rglob(f"*case0009*_{contrast}.nii.gz")))
    scan = volume.array[0]
    np.testing.assert_array_equal(brain_of(scan, contrast, volume.affine), head_mask(scan))
