"""Where the brain of a scan is from: a mask that was given, a stripped scan, a network or, failing these, the head."""

import nibabel as nib
import numpy as np
import pytest

from data.files.space import Space, centred_space, resample
from data.files.volumes import read_volume, write_volume
from data.phantom.cohort import Subject, make_subject
from data.scans.brain import find_brain, read_brain, with_brains
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


class Network:
    """Stands for the network: what is brighter than `threshold` is brain.

    runs: how often it was asked.
    """

    def __init__(self) -> None:
        self.threshold, self.runs = 80.0, 0

    def __call__(self, scan: np.ndarray, own: Space) -> np.ndarray:
        self.runs += 1
        return scan > self.threshold


@pytest.fixture
def network(monkeypatch) -> Network:
    found = Network()
    monkeypatch.setattr("data.scans.brain.extract_brain", found)
    return found


def skull(bright: float = 100, radius: float = 7) -> tuple[np.ndarray, np.ndarray]:
    """A ball of a brain in a ball of a head of 60; the scan (D, H, W) and the brain."""
    scan, _ = ball()
    _, brain = ball(radius=radius)
    scan[brain] = bright
    return scan, brain


def brain_of(scan: np.ndarray, affine=EIGHT_MM) -> np.ndarray | None:
    return find_brain(scan, head_mask(scan), Space(scan.shape, affine))


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


def test_given_mask_goes_before_what_would_be_found_and_folders_that_were_named_before_brains(tmp_path, network):
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
    assert network.runs == 0 and not (tmp_path / "found").exists()


def test_unlikely_masks_that_were_given_are_named_in_one_line(tmp_path, capsys):
    scan, brain = skull()
    lesion, air = np.zeros_like(brain), np.zeros_like(brain)
    lesion[11:13, 14:16, 12:14], air[:3, :3, :3] = True, True
    for subject, mask in (("01", brain), ("02", lesion), ("03", air)):
        put(tmp_path, f"Scans/sub-{subject}_T1w.npy", scan)
        put(tmp_path, f"Brains/sub-{subject}_desc-brain_mask.npy", mask)
    admit(with_brains(cases_in(tmp_path), None), GRID, tmp_path / "found")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "unlikely" in line]
    assert "sub-02_T1w.npy is unlikely, 0.3% of the head (and of 1 more): nothing else is" in line


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


def test_stripped_scan_is_its_own_brain_and_noisy_air_says_that_it_is_none(network):
    network.threshold = 30
    scan, noisy = (ball(noise=noise)[0] for noise in (0, 1))
    np.testing.assert_array_equal(brain_of(scan), head_mask(scan))
    np.testing.assert_array_equal(brain_of(noisy), noisy > 30)


def test_nothing_and_too_little_are_no_brain(network):
    for bright, radius in ((70, 7), (100, 4)):  # darker than what the network stands for, or 0.13 L
        scan, _ = skull(bright, radius)
        for own in (Space(scan.shape, EIGHT_MM), None):
            assert find_brain(scan, head_mask(scan), own) is None


def test_voxels_of_unknown_size_are_as_large_as_a_head_makes_them(network):
    scan, brain = skull()
    assert brain_of(scan, FOUR_MM) is None  # 0.1 L
    np.testing.assert_array_equal(find_brain(scan, head_mask(scan), None), brain)


@pytest.mark.parametrize(("threshold", "litres"), [(30, r"5\.\d"), (80, r"2\.5")])  # stripped, or with a skull
def test_brain_of_a_torso_is_refused_before_the_grid_is(tmp_path, network, threshold, litres):
    network.threshold = threshold
    put(tmp_path, "Scans/sub-01_T1w.nii.gz", skull()[0], np.diag([12.0, 12, 12, 1]))
    match = (
        rf"sub-01_T1w\.nii\.gz shows a brain of {litres} L, outside the range of 0\.3 to 2\.2 L; crop .+ --brains_dir"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=match):
            admit(cases_in(tmp_path), Grid((1, 9, 9, 9)), tmp_path / "found")


def test_brain_that_a_wrong_head_does_not_hold_is_not_cut_by_it(network):
    scan, brain = skull()
    for own in (Space(scan.shape, EIGHT_MM), None):
        np.testing.assert_array_equal(find_brain(scan, ~brain, own), brain)


@pytest.mark.parametrize("ext", [".npy", ".nii.gz"])
def test_brain_is_found_once_and_kept_on_the_grid_of_its_scan(tmp_path, network, ext):
    scan, brain = skull()
    affine = np.diag([-8.0, -7, 9, 1])  # stored as LPS
    put(tmp_path, f"Scans/sub-01_T1w{ext}", scan, affine)
    (case,) = cases_in(tmp_path)
    for _ in range(2):
        admit([case], GRID, tmp_path / "found")
        found = read_brain(case, tmp_path / "found")
        assert found.dtype == bool and dice(found, read_volume(case.scan).array[0] > 80) == 1
    assert network.runs == 1 and found.sum() == brain.sum()
    (kept,) = (tmp_path / "found").iterdir()
    assert kept.name.startswith("sub-01_T1w_") and kept.name.endswith(f"_desc-brain_mask{ext}")
    if ext != ".npy":
        np.testing.assert_array_equal(nib.load(kept).affine, affine)
        np.testing.assert_array_equal(nib.load(kept).get_fdata(), brain.transpose(1, 2, 0))


def test_brain_of_a_changed_scan_or_of_other_code_is_found_anew(tmp_path, network, monkeypatch):
    put(tmp_path, "Scans/sub-01_T1w.npy", skull()[0])
    (case,) = cases_in(tmp_path)
    admit([case], GRID, tmp_path / "found")
    scan, brain = skull(radius=6)
    put(tmp_path, "Scans/sub-01_T1w.npy", scan)
    admit([case], GRID, tmp_path / "found")
    np.testing.assert_array_equal(read_brain(case, tmp_path / "found"), brain)
    assert network.runs == 2
    monkeypatch.setattr("data.scans.brain.PREPARATION_VERSION", "of another checkout")
    admit([case], GRID, tmp_path / "found")
    assert network.runs == 3


def test_head_stands_for_a_brain_that_is_not_found_and_one_line_says_so(tmp_path, network, capsys):
    for name, bright in (("sub-01_dwi", 70), ("sub-02_dwi", 70), ("sub-03_T1w", 100)):
        put(tmp_path, f"Scans/{name}.npy", skull(bright)[0])
    cases = cases_in(tmp_path)
    capsys.readouterr()
    for _ in range(2):  # said again of what was kept
        admit(cases, GRID, tmp_path / "found")
        assert capsys.readouterr().out == (
            "No brain found in 2 scans with a skull (e.g. sub-01_dwi.npy): the whole head is used as the "
            "brain mask; give brain masks with --brains_dir, or a stripped scan\n"
        )
    np.testing.assert_array_equal(read_brain(cases[0], tmp_path / "found"), head_mask(skull(70)[0]))
    assert network.runs == 3


# --- the network itself --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["t1w", "flair", "dwi"])
def synthetic(request) -> Subject:
    """A synthetic head at 4 mm."""
    return make_subject(PhantomSettings(modality=request.param, spacing=(4, 4, 4), healthy_fraction=0), 0)


def test_brain_of_a_synthetic_head_is_found_whatever_its_scale_padding_and_broken_voxels(synthetic):
    scan, truth, widths = synthetic.scan[0], synthetic.brain, ((3, 0), (4, 6), (0, 5))
    brain = brain_of(scan, FOUR_MM)
    assert dice(brain, truth) > 0.95 and brain[synthetic.mask[0] > 0].mean() > 0.99
    changed = np.pad(1000 * scan + 500, widths, constant_values=500)
    changed[-1, -1, -1] = -32768
    assert dice(brain_of(changed, FOUR_MM), np.pad(truth, widths)) > 0.95
    assert dice(find_brain(scan, head_mask(scan), None), truth) > 0.9  # of unknown voxel size


def test_synthetic_brain_without_skull_is_left_as_it_is(synthetic):
    stripped = np.where(synthetic.brain, synthetic.scan[0], 0)
    np.testing.assert_array_equal(brain_of(stripped, FOUR_MM), head_mask(stripped))


# --- real scans ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_head():
    """A real T1w head with skull and face, 1 mm, stored as LIA, and its brain, (D, H, W)."""
    volume = read_volume(REAL / "t1w/sub-head_T1w.nii.gz")
    return volume, brain_of(volume.array[0], volume.affine)


@real
def test_brain_of_a_real_head_has_nearly_the_volume_that_deepbet_gave_it(real_head):
    volume, brain = real_head
    assert brain.sum() * np.prod(volume.spacing_mm) / 1000 == pytest.approx(1542, rel=0.05)


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
    assert found.sum() * np.prod(coarse.spacing_mm) / 1000 == pytest.approx(1542, rel=0.05)
    assert dice(resample(found[None], coarse, own)[0], brain) >= 0.98


@real
@pytest.mark.parametrize("contrast", ["dwi", "flair"])
def test_real_scans_of_isles_are_stripped_and_so_their_brain_is_their_head(contrast):
    volume = read_volume(next(REAL.rglob(f"*case0009*_{contrast}.nii.gz")))
    scan = volume.array[0]
    np.testing.assert_array_equal(brain_of(scan, volume.affine), head_mask(scan))
