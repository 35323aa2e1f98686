"""ATLAS as it is published: prepared by the script, read by the others, and taken back."""

import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.files.names import extension_of
from data.files.volumes import read_volume
from data.prepare.cohort import laterality
from data.prepare.layouts import LAYOUTS, find_cases
from data.scans.checks import space_of
from data.scans.cohort import BRAINS, pair_cases
from tests.running import GRID, is_png, run_script
from tests.test_real_files import PLACES
from utils import cli
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


def run_here(name: str, *command, code: int = 0) -> SimpleNamespace:
    """Run ``python -m NAME COMMAND`` in this process, which has loaded the libraries, and check its exit code."""
    module, out, err, ended = import_module(name), StringIO(), StringIO(), 0
    with mock.patch("sys.argv", [name, *map(str, command)]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.run(module.main, module.parse_args)
        except SystemExit as exit:
            ended = exit.code
    assert ended == code, f"{command} ended with {ended}:\n{out.getvalue()}\n{err.getvalue()}"
    return SimpleNamespace(out=out.getvalue(), err=err.getvalue())


PREPARE, RESTORE = "data.prepare.__main__", "data.restore.__main__"


def prepare(dataset: str, root: Path, out_dir: Path, *more, code: int = 0) -> SimpleNamespace:
    return run_here(PREPARE, "--dataset", dataset, "--root", root, "--out_dir", out_dir, *more, code=code)


@pytest.fixture(scope="session")
def prepare_atlas(atlas, cohort):
    """`prepare` of ATLAS at the 8 mm of the synthetic scans, with their true brains."""
    given = ["--spacing", 8, 8, 8, "--brains_dir", cohort / BRAINS]
    return lambda out_dir, *more, root=atlas, code=0: prepare("atlas", root, out_dir, *given, *more, code=code)


@pytest.fixture(scope="session")
def prepared(prepare_atlas, tmp_path_factory) -> Path:
    out_dir = tmp_path_factory.mktemp("prepared") / "Base"
    prepare_atlas(out_dir, "--scan_dim", 1, 20, 22, 32)
    return out_dir


def restore(masks: Path, prepared_dir: Path, out_dir: Path, *more) -> list[Path]:
    """Prepared masks as if they were predictions, restored."""
    predictions = out_dir.with_name("predictions")
    for case in pair_cases([prepared_dir / "Scans"], [masks]):
        predictions.mkdir(exist_ok=True)
        shutil.copy(case.mask, predictions / f"{case.stem}_prediction{extension_of(case.mask)}")
    folders = ["--predictions", predictions, "--prepared_dir", prepared_dir, "--out_dir", out_dir]
    run_here(RESTORE, *folders, *more)
    return sorted(out_dir.iterdir())


def require_same_mask(restored: Path, original: Path, like: Path) -> None:
    """Voxels as in the original, as they are stored, and all that places it as in another file, to the bit."""
    ours, theirs, placed = (nib.load(path) for path in (restored, original, like))
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    for field in PLACES:
        assert ours.header[field].tobytes() == placed.header[field].tobytes(), field


# --- ATLAS ---------------------------------------------------------------------------------------------


def test_atlas_becomes_volumes_a_table_and_a_page(prepared, cohort):
    table = pd.read_csv(prepared / "cohort.csv")
    assert table.subject.tolist() == sorted(pd.read_csv(cohort / "cohort.csv").subject)
    assert set(table["shape"]) == {"22 32 20"} and set(table.spacing_mm) == {"8.0 8.0 8.0"}
    assert set(table.brain) == {"given"} and is_png(prepared / "cohort.png")
    for row, (_, scan, mask) in zip(table.itertuples(), subjects_of(cohort), strict=True):
        written, label = np.load(prepared / "Scans" / row.scan), np.load(prepared / "Masks" / row.mask)
        brain = np.load(prepared / "Brains" / f"{row.scan[:-4]}_desc-brain_mask.npy")
        assert written.shape == label.shape == brain.shape == (1, 22, 32, 20)
        assert written.dtype == np.float32 and label.dtype == brain.dtype == np.uint8
        assert row.lesion_voxels == label.sum() == mask.sum()
        assert row.lesion_cm3 == row.source_lesion_cm3 == pytest.approx(0.512 * label.sum())
        assert np.isin(written[written > written.min()], scan).all()  # voxels are copied, not interpolated
        given = np.load(cohort / BRAINS / f"{row.scan[:-4]}_desc-brain_mask.npy")
        assert brain.sum() == given.sum()  # of the brain nothing is cut


def test_table_agrees_with_that_of_the_synthetic_cohort(prepared, cohort):
    ours, theirs = (pd.read_csv(folder / "cohort.csv") for folder in (prepared, cohort))
    columns = ["subject", "lesion_voxels", "lesion_cm3", "n_lesions", "size", "laterality"]
    pd.testing.assert_frame_equal(ours[columns], theirs[columns])


def test_prepared_masks_return_to_the_original_grid_to_the_voxel(prepared, atlas, tmp_path):
    restored = restore(prepared / "Masks", prepared, tmp_path / "native")
    cases = find_cases(atlas, LAYOUTS["atlas"])
    assert len(restored) == len(cases) == 6
    for path, case in zip(restored, cases, strict=True):
        require_same_mask(path, case.mask, case.scan)


def test_raw_and_prepared_scans_lead_to_the_same_prediction(atlas, cohort, prepare_atlas, workspace, tmp_path):
    common = ["test_strokeformer.py", "--ckpt_path", workspace.seg, "--n_predictions", 0, "--scans"]
    brains = ["--brains_dir", cohort / BRAINS]
    run_script(*common, atlas / "Training", "--model_name", "raw", *brains, cwd=tmp_path)
    prepare_atlas(tmp_path / "Base", *GRID)
    run_script(*common, tmp_path / "Base/Scans", "--model_name", "prepared", cwd=tmp_path)
    folders = ["--predictions", tmp_path / "scores/prepared/predictions", "--prepared_dir", tmp_path / "Base"]
    run_here(RESTORE, *folders, "--out_dir", tmp_path / "native")
    raw, restored = (
        sorted(folder.glob("*.nii.gz")) for folder in (tmp_path / "scores/raw/predictions", tmp_path / "native")
    )
    assert [p.name for p in raw] == [p.name for p in restored] and len(raw) == 6
    for one, other in zip(raw, restored, strict=True):
        np.testing.assert_array_equal(nib.load(one).dataobj, nib.load(other).dataobj)


def test_coarser_spacing_keeps_the_volume_of_large_lesions(prepare_atlas, tmp_path):
    prepare_atlas(tmp_path / "Base", "--scan_dim", 1, 16, 18, 20, "--spacing", 12, 12, 12)
    table = pd.read_csv(tmp_path / "Base/cohort.csv")
    large = table[table.source_lesion_cm3 > 30]
    assert len(large) and (large.lesion_cm3 / large.source_lesion_cm3).between(0.7, 1.3).all()
    assert set(table.spacing_mm) == {"12.0 12.0 12.0"}


def test_spacing_of_prepared_npy_is_told_by_its_table(prepared):
    (case, *_) = pair_cases([prepared / "Scans"], [prepared / "Masks"])
    assert space_of(case).spacing_mm == (8, 8, 8)


def test_workers_make_the_same_files_and_a_second_run_repeats_nothing(prepared, prepare_atlas, tmp_path):
    arguments = ["--scan_dim", 1, 20, 22, 32, "--num_workers", 2]
    prepare_atlas(tmp_path / "Base", *arguments)
    files = sorted(p.relative_to(prepared) for p in prepared.rglob("*") if p.suffix in (".npy", ".csv"))
    assert files and all((tmp_path / "Base" / p).read_bytes() == (prepared / p).read_bytes() for p in files)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "Base").rglob("*.npy")}
    next((tmp_path / "Base/Geometry").iterdir()).unlink()  # as if the run had been stopped in this scan
    prepare_atlas(tmp_path / "Base", *arguments[:5])
    assert sum(p.stat().st_mtime_ns != stamp for p, stamp in stamps.items()) == 3


def test_folder_of_other_settings_is_refused(prepared, prepare_atlas):
    line = prepare_atlas(prepared, "--scan_dim", 1, 20, 22, 30, code=2).err
    assert "--scan_dim" in line and "choose another name or folder" in line


def test_grid_that_cuts_a_brain_is_refused_and_the_shape_it_names_holds_it(prepare_atlas, tmp_path):
    line = prepare_atlas(tmp_path / "Base", "--scan_dim", 1, 12, 22, 32, code=2).err.splitlines()[-1]
    name, needed = re.search(r"(\S+_T1w.nii.gz) has a brain larger .* --scan_dim (1 \d+ 22 32), or", line).groups()
    assert "sub-" in name and not list(tmp_path.rglob("*_T1w.npy"))
    prepare_atlas(tmp_path / "Base", "--scan_dim", *needed.split())  # the refused shape does not hold the folder
    assert len(pd.read_csv(tmp_path / "Base/cohort.csv")) == 6


def test_small_loss_of_a_brain_is_told(prepare_atlas, tmp_path):
    out = prepare_atlas(tmp_path / "Base", "--scan_dim", 1, 15, 22, 32).out
    assert re.search(r"--scan_dim cuts \d\.\d% of the brain off in sub-\S+ .*give a larger one", out)


def test_broken_scan_does_not_stop_the_others_and_is_done_once_mended(atlas, prepare_atlas, tmp_path):
    root = tmp_path / "ATLAS"
    shutil.copytree(atlas / "Training", root)
    broken = sorted(root.rglob("*_T1w.nii.gz"))[2]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    error = prepare_atlas(tmp_path / "Base", *GRID, root=root, code=2).err.splitlines()[-1]
    assert str(broken) in error and "1 of 6 scans refused" in error
    assert len(list((tmp_path / "Base/Scans").iterdir())) == 5 and not (tmp_path / "Base/cohort.csv").exists()
    broken.write_bytes(whole)
    prepare_atlas(tmp_path / "Base", *GRID, root=root)
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
def test_side_of_a_lesion_is_told_about_the_middle_of_the_brain(columns, side):
    brain, mask = np.zeros((2, 10, 3), bool), np.zeros((2, 10, 3), bool)
    brain[:, :], mask[0, columns] = True, True
    assert laterality(mask, brain) == side


def test_prepared_scans_below_the_root_are_not_prepared_again(atlas, prepare_atlas, tmp_path):
    shutil.copytree(atlas / "Training", tmp_path / "ATLAS/Training")
    for _ in range(2):
        done = prepare_atlas(tmp_path / "ATLAS/Base", *GRID, "--ext", ".nii.gz", root=tmp_path / "ATLAS")
        assert "--root: 6 scans with their masks" in done.out


def test_a_brain_is_found_by_itself_and_one_given_later_goes_before_it(atlas, cohort, tmp_path):
    subject = next(folder for folder in (atlas / "Training").rglob("sub-*") if folder.is_dir())
    arguments = [subject, tmp_path / "Base", "--spacing", 8, 8, 8, *GRID]
    prepare("atlas", *arguments)
    assert pd.read_csv(tmp_path / "Base/cohort.csv").brain.tolist() == ["found"]
    found, true = read_volume(next((tmp_path / "Base/Brains").iterdir())).array.sum(), []
    prepare("atlas", *arguments, "--brains_dir", cohort / BRAINS)
    assert pd.read_csv(tmp_path / "Base/cohort.csv").brain.tolist() == ["given"]
    given = read_volume(next((tmp_path / "Base/Brains").iterdir())).array.sum()
    (true,) = (cohort / BRAINS).glob(f"{subject.name}_*")
    assert given == np.load(true).sum() and 0.5 < found / given < 2


def test_head_with_a_skull_that_stands_for_the_brain_is_told(atlas, tmp_path, monkeypatch):
    monkeypatch.setattr("data.scans.brain.extract_brain", lambda scan, own: np.zeros(scan.shape, bool))
    case = find_cases(atlas, LAYOUTS["atlas"])[0]
    for path, name in ((case.scan, "sub-1_FLAIR"), (case.mask, "sub-1_lesion_mask")):
        (tmp_path / "raw").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / f"raw/{name}.nii.gz")
    line = prepare("bids", tmp_path / "raw", tmp_path / "Base").out
    assert "No brain found in 1 scan with a skull (e.g. sub-1_FLAIR.nii.gz)" in line and "--brains_dir" in line
    assert pd.read_csv(tmp_path / "Base/cohort.csv").brain.tolist() == ["head"]


def test_folder_without_scans_of_the_layout_is_refused(atlas):
    with pytest.raises(UserError, match="its names are those of --dataset atlas"):
        find_cases(atlas, LAYOUTS["isles-dwi"])
