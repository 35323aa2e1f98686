"""Files as they are out there, damaged, padded or contradicting, run through the real scripts; and a few real scans."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.files.volumes import read_header, read_volume, write_like
from data.scans.head import head_mask
from tests.drawn import dice
from tests.running import GRID, ROOT, run_script
from tests.test_refusals import Files, refused

REAL = ROOT.parent / "shared/real"  # not part of the project; see its README.md
SIZES = np.diag([-8.0, 8, 8])  # mm
PLACES = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
          "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units")  # fmt: skip


def write_nifti(path: Path, array: np.ndarray, slope: float = 1) -> None:
    """Write (H, W, D) voxels whose sform (code 2) and qform (code 1) place them differently."""
    image = nib.Nifti1Image(array, None)
    turn = nib.eulerangles.euler2mat(0.1, 0.2, 0.3)
    image.header.set_qform(nib.affines.from_matvec(turn @ SIZES, (1 / 3, -5, 6)), 1)
    image.header.set_sform(nib.affines.from_matvec(SIZES, (70, -80, 1 / 7)), 2)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(slope, 0)
    path.parent.mkdir(exist_ok=True)
    image.to_filename(path)


@pytest.fixture(scope="module")
def segmented(workspace, tmp_path_factory) -> SimpleNamespace:
    """A scan in a margin of air, with a broken voxel, and in a margin of padding, segmented; its mask is 0 and 255."""
    root, brains = tmp_path_factory.mktemp("real_files"), workspace.scans.parent / "Brains"
    scan, mask, brain = (np.load(sorted(f.iterdir())[0])[0] for f in (workspace.scans, workspace.masks, brains))
    margin = ((4, 4), (4, 4), (0, 0))
    plain = np.pad(scan, margin, constant_values=np.float32(2.6))
    broken = plain.copy()
    broken[4, 4, 4] = -32768
    variants = {"plain": plain, "broken": broken, "padded": np.pad(scan, margin, constant_values=np.float32(500))}
    for name, array in variants.items():
        write_nifti(root / f"Scans/sub-{name}_T1w.nii.gz", array)
        write_nifti(root / f"Masks/sub-{name}_mask.nii.gz", np.pad(mask, margin) * np.uint8(255), slope=0.00392156)
        write_nifti(root / f"Brains/sub-{name}_brain_mask.nii.gz", np.pad(brain, margin))
    run = run_script(
        *["test_strokeformer.py", "--scans", root / "Scans", "--masks", root / "Masks"],
        *["--ckpt_path", workspace.seg, *GRID, "--n_predictions", 0],
        cwd=root,
    )
    predictions = {n: next(root.glob(f"scores/*/predictions/sub-{n}_*.nii.gz")) for n in variants}
    return SimpleNamespace(root=root, scans=root / "Scans", mask=mask, predictions=predictions, run=run)


def test_prediction_does_not_depend_on_a_broken_voxel_nor_on_padding(segmented):
    masks = {name: read_volume(path).array > 0 for name, path in segmented.predictions.items()}
    assert 0 < masks["plain"].mean() < 1
    assert dice(masks["plain"], masks["broken"]) > 0.99
    assert dice(masks["plain"], masks["padded"]) > 0.99


def test_prediction_carries_both_forms_their_codes_and_the_unit_of_its_scan(segmented):
    scan = nib.load(segmented.scans / "sub-plain_T1w.nii.gz").header
    prediction = nib.load(segmented.predictions["plain"])
    assert prediction.shape == scan.get_data_shape() and prediction.get_data_dtype() == np.uint8
    assert (int(scan["qform_code"]), int(scan["sform_code"])) == (1, 2)
    for field in PLACES:
        assert prediction.header[field].tobytes() == scan[field].tobytes(), field


def test_mask_of_0_and_255_with_a_slope_is_scored_as_one_of_0_and_1(segmented):
    table = (segmented.root / "scores/per_scan_scores.csv").read_text()
    assert segmented.mask.sum() > 0 and "sub-plain_T1w.nii.gz" in table
    target = read_volume(segmented.root / "Masks/sub-plain_mask.nii.gz").array[0] > 0.5
    prediction = read_volume(segmented.predictions["plain"]).array[0] > 0
    header, row = (line.split(",") for line in table.splitlines()[:1] + [x for x in table.splitlines() if "plain" in x])
    assert float(row[header.index("dice")]) == pytest.approx(dice(prediction, target), abs=1e-4)


def test_lesions_are_placed_where_their_voxels_lie_in_the_scanner(segmented):
    lesions = pd.read_csv(segmented.root / "scores/per_lesion_scores.csv", dtype=str)
    lesions = lesions[lesions.scan.str.contains("plain") & (lesions.kind == "lesion")]
    image = nib.load(segmented.root / "Masks/sub-plain_mask.nii.gz")  # its H runs from right to left
    centre = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0.5)).mean(0)
    places, voxels = lesions[["x_mm", "y_mm", "z_mm"]].astype(float), lesions.voxels.astype(int)
    np.testing.assert_allclose(np.average(places, axis=0, weights=voxels), centre, atol=1e-4)


def slices_of(files: Files) -> list:
    folders = ["--scans_dir", files.scans, "--masks_dir", files.masks, "--ext", ".nii.gz"]
    return ["-m", "data.slices", *folders, *GRID, "--out_dir", files.root / "slices"]


def test_voxels_that_a_flipped_bit_has_changed_are_refused(cohort, tmp_path):
    files = Files(cohort, tmp_path / "data", ".nii.gz")
    stored = bytearray(gzip.compress(gzip.decompress(files.scan.read_bytes()), 0))  # not deflated: a voxel is a byte
    stored[-40] ^= 1
    files.scan.write_bytes(stored)
    line = refused(*slices_of(files), cwd=tmp_path)
    assert f"{files.scan} is damaged" in line and "; copy or download it again" in line


def test_header_that_says_two_voxel_sizes_is_refused(cohort, tmp_path):
    files = Files(cohort, tmp_path / "data", ".nii.gz")
    files.edit_header(files.scan, pixdim=[1, 24, 24, 24, 0, 0, 0, 0])
    line = refused(*slices_of(files), cwd=tmp_path)
    assert f"{files.scan} says its voxels are 8 x 8 x 8 mm (sform) and 24 x 24 x 24 mm (pixdim); correct" in line


# --- real scans ----------------------------------------------------------------------------------------

REAL_FILES = sorted(REAL.rglob("*.nii.gz"))


@pytest.mark.skipif(not REAL_FILES, reason="no real scans beside the project")
def test_real_scans_are_read_and_a_mask_written_like_them_comes_back(tmp_path):
    for path in REAL_FILES:
        volume = read_volume(path)
        assert volume.array.shape == read_header(path).shape
        write_like(tmp_path / "mask.nii.gz", volume.array[0] > 0, path)
        mask = read_volume(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(mask.array, volume.array > 0)
        np.testing.assert_array_equal(mask.affine, volume.affine)


@pytest.mark.skipif(not REAL_FILES, reason="no real scans beside the project")
@pytest.mark.parametrize(
    ("name", "head_cm3"), [("sub-head_T1w", 3374), ("case0009_ses-0001_dwi", 1415), ("case0009_ses-0001_flair", 1435)]
)
def test_head_of_a_real_scan_is_the_same_with_a_broken_voxel_and_padding(name, head_cm3):
    volume = read_volume(next(path for path in REAL_FILES if name in path.name))
    scan, head = volume.array[0], head_mask(volume.array[0])
    assert head.sum() * np.prod(volume.spacing_mm) / 1000 == pytest.approx(head_cm3, rel=0.01)
    widths = ((3, 0), (4, 5), (0, 6))
    for padding in (-1000, 60, 9999):
        padded = np.pad(scan, widths, constant_values=padding)
        padded[0, 0, 0] = -32768
        found, expected = head_mask(padded), np.pad(head, widths)
        assert (found & expected).sum() / (found | expected).sum() > 0.99
