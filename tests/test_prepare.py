"""ATLAS and ISLES as they are published: prepared by the script, read by the others, and taken back."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.checks import read_scan
from data.cohort import bids_entity, pair_cases
from data.prepare.layouts import LAYOUTS, find_cases
from data.prepare.overview import laterality
from data.volumes import read_volume
from tests.running import GRID, is_png, run_script
from utils.errors import UserError

RAS_8MM = np.array([[8.0, 0, 0, -90], [0, 8, 0, -110], [0, 0, 8, -70], [0, 0, 0, 1]])


def stored(array: np.ndarray, axes: str, affine=RAS_8MM) -> nib.Nifti1Image:
    """An (H, W, D) array in RAS as an image whose voxels are stored along `axes`, e.g. "LPS" or "PSR"."""
    orientation = nib.orientations.axcodes2ornt(axes)
    from_ras = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
    turned = affine @ nib.orientations.inv_ornt_aff(from_ras, array.shape)
    return nib.Nifti1Image(nib.apply_orientation(array, from_ras), turned)


def subjects_of(cohort: Path):
    """(subject, scan, mask) of a synthetic cohort, arrays (H, W, D)."""
    for case in pair_cases([cohort / "Scans"], [cohort / "Masks"]):
        yield case.subject, *(np.load(path)[0] for path in (case.scan, case.mask))


def save(image: nib.Nifti1Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


@pytest.fixture(scope="session")
def atlas(cohort, tmp_path_factory) -> Path:
    """ATLAS R2.0 as it is unpacked, the synthetic scans in it, in a folder with a space and an umlaut."""
    root = tmp_path_factory.mktemp("downloads") / "ATLAS für alle"
    for subject, scan, mask in subjects_of(cohort):
        anat = root / "Training" / subject[:4].upper() / f"sub-{subject}/ses-1/anat"
        name = f"sub-{subject}_ses-1_space-MNI152NLin2009aSym"
        save(stored(scan, "LPS"), anat / f"{name}_T1w.nii.gz")
        save(stored(mask, "LPS"), anat / f"{name}_label-L_desc-T1lesion_mask.nii.gz")
    hidden = root / "Testing/R099/sub-r099s001/ses-1/anat/sub-r099s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz"
    save(stored(scan, "LPS"), hidden)
    (root / "Training/participants.tsv").write_text("subject\n")
    return root


@pytest.fixture(scope="session")
def isles(cohort, tmp_path_factory) -> Path:
    """ISLES 2022: DWI and mask on one grid, a finer FLAIR on its own, masks in a tree of their own."""
    root = tmp_path_factory.mktemp("ISLES-2022")
    for number, (_, scan, mask) in enumerate(subjects_of(cohort), 1):
        session, name = f"sub-strokecase{number:04d}/ses-0001", f"sub-strokecase{number:04d}_ses-0001"
        save(stored(scan, "LAS"), root / session / "dwi" / f"{name}_dwi.nii.gz")
        save(stored(scan[::-1] + 3, "LAS"), root / session / "dwi" / f"{name}_adc.nii.gz")
        finer = RAS_8MM @ np.diag([0.5, 0.5, 1, 1])
        finer[:3, 3] -= [2, 2, 0]  # the corners of the two grids coincide, so the centres of their voxels do not
        save(stored(scan.repeat(2, 0).repeat(2, 1), "PSR", finer), root / session / "anat" / f"{name}_FLAIR.nii.gz")
        save(stored(mask, "LAS"), root / "derivatives" / session / f"{name}_msk.nii.gz")
    return root


def prepare(dataset: str, root: Path, out_dir: Path, *more, code: int = 0, spacing=(8, 8, 8)):
    command = ["-m", "data.prepare", "--dataset", dataset, "--root", root, "--out_dir", out_dir, "--spacing", *spacing]
    return run_script(*command, *more, cwd=out_dir.parent, code=code)


@pytest.fixture(scope="session")
def prepared(atlas, tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("prepared") / "Base"
    prepare("atlas", atlas, out_dir, "--scan_dim", 1, 20, 22, 32)
    return out_dir


def test_atlas_becomes_volumes_a_table_and_a_page(prepared, cohort):
    table = pd.read_csv(prepared / "cohort.csv")
    assert table.subject.tolist() == sorted(pd.read_csv(cohort / "cohort.csv").subject)
    assert set(table["shape"]) == {"22 32 20"} and set(table.spacing_mm) == {"8.0 8.0 8.0"}
    assert is_png(prepared / "cohort.png")
    for row, (_, scan, mask) in zip(table.itertuples(), subjects_of(cohort), strict=True):
        written, label = np.load(prepared / "Scans" / row.scan), np.load(prepared / "Masks" / row.mask)
        assert written.shape == label.shape == (1, 22, 32, 20)
        assert written.dtype == np.float32 and label.dtype == np.uint8
        assert row.lesion_voxels == label.sum() <= mask.sum()
        assert row.lesion_cm3 == pytest.approx(0.512 * label.sum())
        assert row.source_lesion_cm3 == pytest.approx(0.512 * mask.sum())
        assert np.isin(written[written > written.min()], scan).all()  # voxels are copied, not interpolated


def test_table_agrees_with_that_of_the_synthetic_cohort(prepared, cohort):
    ours, theirs = (pd.read_csv(folder / "cohort.csv") for folder in (prepared, cohort))
    same = ours.lesion_cm3 == ours.source_lesion_cm3  # nothing was cut off
    assert same.sum() >= 3
    columns = ["subject", "lesion_voxels", "lesion_cm3", "n_lesions", "laterality"]
    pd.testing.assert_frame_equal(ours.loc[same, columns], theirs.loc[same, columns])


def test_prepared_masks_return_to_the_original_grid_to_the_voxel(atlas, tmp_path):
    prepare("atlas", atlas, tmp_path / "Base", "--scan_dim", 1, 30, 28, 40)  # larger than the scans: nothing is cut
    (tmp_path / "predictions").mkdir()
    for mask in (tmp_path / "Base/Masks").iterdir():
        subject = bids_entity(mask, "sub")
        scan = next((tmp_path / "Base/Scans").glob(f"sub-{subject}_*"))
        mask.rename(tmp_path / "predictions" / f"{scan.stem}_prediction.npy")
    run_script(
        *["-m", "data.restore", "--predictions", tmp_path / "predictions", "--prepared_dir", tmp_path / "Base"],
        *["--out_dir", tmp_path / "native"],
        cwd=tmp_path,
    )
    originals = {case.stem: case.mask for case in find_cases(atlas, LAYOUTS["atlas"])}
    for stem, path in originals.items():
        original, restored = nib.load(path), nib.load(tmp_path / "native" / f"{stem}_prediction.nii.gz")
        np.testing.assert_array_equal(np.asarray(restored.dataobj), np.asarray(original.dataobj))
        np.testing.assert_array_equal(restored.affine, original.affine)


def test_raw_and_prepared_scans_lead_to_the_same_prediction(atlas, workspace, tmp_path):
    common = ["test_strokeformer.py", "--ckpt_path", workspace.seg, "--n_predictions", 0, *GRID, "--scans"]
    run_script(*common, atlas / "Training", "--model_name", "raw", cwd=tmp_path)
    prepare("atlas", atlas, tmp_path / "Base", *GRID)
    run_script(*common, tmp_path / "Base/Scans", "--model_name", "prepared", cwd=tmp_path)
    run_script(
        *["-m", "data.restore", "--predictions", "scores/prepared/predictions", "--prepared_dir", "Base"],
        *["--out_dir", "native"],
        cwd=tmp_path,
    )
    raw, restored = (
        sorted(folder.glob("*.nii.gz")) for folder in (tmp_path / "scores/raw/predictions", tmp_path / "native")
    )
    assert [p.name for p in raw] == [p.name for p in restored] and len(raw) == 6
    for one, other in zip(raw, restored, strict=True):
        np.testing.assert_array_equal(nib.load(one).dataobj, nib.load(other).dataobj)


@pytest.mark.parametrize("dataset", ["isles-dwi", "isles-flair"])
def test_isles_is_prepared_on_the_grid_of_its_mask(isles, cohort, tmp_path, dataset):
    prepare(dataset, isles, tmp_path / "Base", "--scan_dim", 1, 24, 25, 29, "--ext", ".nii.gz")
    table = pd.read_csv(tmp_path / "Base/cohort.csv")
    ending = "_dwi.nii.gz" if dataset == "isles-dwi" else "_FLAIR.nii.gz"
    assert table.scan.tolist() == [f"sub-strokecase{i:04d}_ses-0001{ending}" for i in range(1, 7)]
    for row, (_, scan, mask) in zip(table.itertuples(), subjects_of(cohort), strict=True):
        image = nib.load(tmp_path / "Base/Scans" / row.scan)
        np.testing.assert_allclose(image.affine, RAS_8MM, atol=1e-4)
        np.testing.assert_array_equal(nib.load(tmp_path / "Base/Masks" / row.mask).dataobj, mask)
        # The FLAIR holds every voxel four times over, so that resampling gives them back but for the smoothing.
        assert np.corrcoef(image.get_fdata().ravel(), scan.ravel())[0, 1] > (0.999 if dataset == "isles-dwi" else 0.97)


def test_coarser_spacing_keeps_the_volume_of_large_lesions(atlas, tmp_path):
    prepare("atlas", atlas, tmp_path / "Base", "--scan_dim", 1, 16, 18, 20, spacing=(12, 12, 12))
    table = pd.read_csv(tmp_path / "Base/cohort.csv")
    large = table[table.source_lesion_cm3 > 30]
    assert len(large) and (large.lesion_cm3 / large.source_lesion_cm3).between(0.7, 1.3).all()
    assert set(table.spacing_mm) == {"12.0 12.0 12.0"}


def test_spacing_of_prepared_npy_reaches_the_scores(prepared):
    (case, *_) = pair_cases([prepared / "Scans"], [prepared / "Masks"])
    assert read_scan(case)[1] == (8, 8, 8)


def test_workers_make_the_same_files_and_a_second_run_repeats_nothing(prepared, atlas, tmp_path):
    arguments = ["--scan_dim", 1, 20, 22, 32, "--num_workers", 2]
    prepare("atlas", atlas, tmp_path / "Base", *arguments)
    files = sorted(p.relative_to(prepared) for p in prepared.rglob("*") if p.suffix in (".npy", ".csv"))
    assert files and all((tmp_path / "Base" / p).read_bytes() == (prepared / p).read_bytes() for p in files)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "Base").rglob("*.npy")}
    next((tmp_path / "Base/Geometry").iterdir()).unlink()  # as if the run had been stopped in this scan
    prepare("atlas", atlas, tmp_path / "Base", *arguments)
    assert sum(p.stat().st_mtime_ns != stamp for p, stamp in stamps.items()) == 2


def test_folder_of_other_settings_is_refused(prepared, atlas):
    line = prepare("atlas", atlas, prepared, "--scan_dim", 1, 20, 22, 30, code=2).err
    assert "--scan_dim" in line and "choose another name or folder" in line


def test_broken_scan_does_not_stop_the_others_and_is_done_once_mended(atlas, tmp_path):
    root = tmp_path / "ATLAS"
    for path in (p for p in atlas.rglob("*.nii.gz") if "Training" in p.parts):
        copy = root / path.relative_to(atlas)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    broken = sorted(root.rglob("*_T1w.nii.gz"))[2]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    error = prepare("atlas", root, tmp_path / "Base", *GRID, code=2).err.splitlines()[-1]
    assert str(broken) in error and "1 of 6 scans refused" in error
    assert len(list((tmp_path / "Base/Scans").iterdir())) == 5 and not (tmp_path / "Base/cohort.csv").exists()
    broken.write_bytes(whole)
    prepare("atlas", root, tmp_path / "Base", *GRID)
    assert len(pd.read_csv(tmp_path / "Base/cohort.csv")) == 6


def test_where_a_prepared_scan_lies_is_on_record(prepared, atlas):
    for path in (prepared / "Geometry").iterdir():
        record = json.loads(path.read_text())
        source = read_volume(atlas / record["source"])
        scan = np.load(prepared / "Scans" / record["row"]["scan"])[0]
        peak = np.unravel_index(scan.argmax(), scan.shape)
        where = np.linalg.solve(source.affine, np.array(record["affine"]) @ [*peak, 1])[:3].round().astype(int)
        assert source.array[0][where[2], where[0], where[1]] == scan.max()


@pytest.mark.parametrize(
    ("columns", "side"),
    [([1, 2], "left"), ([7, 8], "right"), ([2, 7], "both"), ([], ""), ([0, 1, 2, 3, 4, 5, 6], "both")],
)
def test_side_of_a_lesion_is_told_about_the_middle_of_the_head(columns, side):
    head, mask = np.zeros((2, 10, 3), bool), np.zeros((2, 10, 3), bool)
    head[:, :], mask[0, columns] = True, True
    assert laterality(mask, head) == side


def test_prepared_scans_below_the_root_are_not_prepared_again(atlas, tmp_path):
    shutil.copytree(atlas / "Training", tmp_path / "ATLAS/Training")
    for _ in range(2):
        done = prepare("atlas", tmp_path / "ATLAS", tmp_path / "ATLAS/Base", *GRID, "--ext", ".nii.gz")
        assert "--root: 6 scans with their masks" in done.out


def test_folder_without_scans_of_the_layout_is_refused(isles):
    with pytest.raises(UserError, match="check the folder and --dataset"):
        find_cases(isles, LAYOUTS["atlas"])
