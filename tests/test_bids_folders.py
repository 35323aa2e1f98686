"""ISLES 2022 as it is published, and any other folder of scans and masks: prepared, trained on, and taken back."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.prepare.layouts import LAYOUTS, find_cases
from tests.running import GRID, QUICK, ROI, run_script
from tests.test_prepare import PREPARE, RAS_8MM, prepare, require_same_mask, restore, run_here, save, stored
from tests.test_real_files import REAL


def phantom(out_dir: Path, *more) -> None:
    common = ["--n_subjects", 4, "--stripped", "--oblique", "--ext", ".nii.gz", "--seed", 1, "--healthy_fraction", 0.25]
    run_here("data.phantom.__main__", "--out_dir", out_dir, *common, *more)


@pytest.fixture(scope="module")
def isles(tmp_path_factory) -> Path:
    """Oblique and stripped: a DWI, the mask on its grid, and a FLAIR of thick slices on a grid of its own."""
    root, drawn = tmp_path_factory.mktemp("ISLES-2022"), tmp_path_factory.mktemp("drawn")
    phantom(drawn / "dwi", "--modality", "dwi", "--spacing", 8)
    phantom(drawn / "flair", "--modality", "flair", "--spacing", 12, 6, 6)
    for path in [*drawn.glob("*/Scans/*"), *drawn.glob("dwi/Masks/*")]:
        session = Path(*path.name.split("_")[:2])
        tree = root / ("derivatives" if "_msk" in path.name else "rawdata") / session
        tree.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tree)
    return root


@pytest.fixture(scope="module", params=["isles-dwi", "isles-flair", "bids"])
def prepared(isles, tmp_path_factory, request):
    """How and in which folder it was prepared, and what was said."""
    out_dir = tmp_path_factory.mktemp("prepared") / "Base"
    # What ISLES is prepared on as it is published is for 2 mm.
    grid = ["--scan_pattern", "*_DWI.nii.gz"] if request.param == "bids" else ["--spacing", 8, 8, 8, *GRID]
    done = prepare(request.param, isles, out_dir, *grid, "--ext", ".nii.gz")
    return request.param, out_dir, done.out


def test_masks_of_isles_keep_every_voxel_there_and_back(prepared, isles, tmp_path):
    dataset, out_dir, said = prepared
    table = pd.read_csv(out_dir / "cohort.csv")
    assert len(table) == 4 and (table.lesion_voxels == 0).sum() == 1
    assert (table.brain == "found").all()
    assert (table.lesion_cm3 == table.source_lesion_cm3).all() and set(table.spacing_mm) == {"8.0 8.0 8.0"}
    on_own_grid = dataset == "isles-flair"
    assert ("4 scans on another grid than the mask" in said) == on_own_grid
    assert ("which holds every brain" in said) == (dataset == "bids")
    masks = sorted(isles.rglob("*_msk.nii.gz"))
    scans = masks if on_own_grid else sorted(isles.rglob("*_dwi.nii.gz"))
    restored = restore(out_dir / "Masks", out_dir, tmp_path / "native", *["--grid", "mask"] * on_own_grid)
    for path, mask, scan in zip(restored, masks, scans, strict=True):
        require_same_mask(path, mask, scan)


def test_scan_lies_where_it_lay(prepared, isles):
    """The brightest place of a scan is as bright at the same place of the scanner before and after."""
    for path in (prepared[1] / "Scans").iterdir():
        ours, theirs = nib.load(path), nib.load(next(isles.rglob(path.name)))
        voxel = np.unravel_index(ours.get_fdata().argmax(), ours.shape)
        there = np.linalg.solve(theirs.affine, ours.affine @ [*voxel, 1])[:3].round().astype(int)
        around = tuple(slice(max(i - 1, 0), i + 2) for i in there)
        assert theirs.get_fdata()[around].max() > 0.9 * ours.get_fdata().max()


def test_folders_like_isles_are_cross_validated_and_predictions_restored(isles, tmp_path):
    said = prepare("bids", isles, tmp_path / "Base", "--scan_pattern", "*_flair").out
    scan_dim = re.search(r"Grid of --scan_dim (\d+ \d+ \d+ \d+)", said)[1].split()
    one, two, three, four = (f"strokecase000{number}" for number in range(1, 5))
    folds = [{"train": [one, two], "val": [three], "test": [four]}]
    (tmp_path / "folds.json").write_text(json.dumps({"folds": folds}))
    run_script(
        *["cross_validation.py", "--scans_dir", "Base/Scans", "--masks_dir", "Base/Masks", "--folds", "folds.json"],
        *["--model_prefix", "seg", "--rpn_model_prefix", "rpn", "--scan_dim", *scan_dim, *ROI, *QUICK],
        *["--max_epochs", 1, "--rpn_max_epochs", 2, "--rpn_image_size", 64, "--rpn_lr", 1e-3, "--rpn_batch_size", 8],
        *["--score_threshold", 0.02, "--n_predictions", 0, "--offline"],
        cwd=tmp_path,
    )
    predictions = sorted((tmp_path / "scores/seg_fold-0/predictions").iterdir())
    for grid in ("scan", "mask"):
        run_script(
            *["-m", "data.restore", "--predictions", "scores/seg_fold-0/predictions", "--prepared_dir", "Base"],
            *["--out_dir", grid, "--grid", grid],
            cwd=tmp_path,
        )
        restored = sorted((tmp_path / grid).iterdir())
        assert len(restored) == len(predictions) > 0
        for path in restored:
            session = "_".join(path.name.split("_")[:2])
            like = nib.load(next(isles.rglob(f"{session}_{'flair' if grid == 'scan' else 'msk'}.nii.gz")))
            assert nib.load(path).shape == like.shape
            np.testing.assert_array_equal(nib.load(path).affine, like.affine)


@pytest.mark.skipif(not (REAL / "isles22").is_dir(), reason="no real scans beside the project")
@pytest.mark.parametrize("contrast", ["dwi", "flair"])
def test_real_case_of_isles_goes_through_without_an_argument_on_its_grid(contrast, tmp_path):
    root = REAL / "isles22"
    prepare("bids", root, tmp_path / "Base", "--scan_pattern", f"*_{contrast}")
    (row,) = pd.read_csv(tmp_path / "Base/cohort.csv").itertuples()
    assert row.lesion_cm3 == row.source_lesion_cm3 == 4.184 and row.n_lesions == 18 and row.brain == "found"
    (case,) = find_cases(root, LAYOUTS["isles-dwi"])
    (mask,) = restore(tmp_path / "Base/Masks", tmp_path / "Base", tmp_path / "native", "--grid", "mask")
    require_same_mask(mask, case.mask, case.mask)


# --- any other folder ----------------------------------------------------------------------------------


def block(shape=(20, 24, 18), margin: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A head that is a block in noisy air and, of it, a lesion; (H, W, D)."""
    rng = np.random.default_rng(seed)
    head, lesion = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    head[tuple(slice(margin, size - margin) for size in shape)] = 1
    lesion[margin + 1 : margin + 4, margin + 2 : margin + 5, margin + 3 : margin + 6] = 1
    scan = rng.normal(0, 1, shape) ** 2 + head * rng.normal(100, 8, shape) + 60 * lesion
    return scan.astype(np.float32), lesion


class Folder:
    """A data set of blocks, each with its brain mask in a folder apart."""

    def __init__(self, path: Path):
        self.root, self.brains, self.out_dir = path / "raw", path / "made elsewhere", path / "Base"

    def add(self, scan: str, mask: str | None, axes="RAS", spacing=8.0, shape=(20, 24, 18), healthy=False) -> None:
        affine = RAS_8MM @ np.diag([spacing / 8] * 3 + [1])
        array, lesion = block(shape)
        save(stored(array, axes, affine), self.root / f"{scan}.nii.gz")
        brain = self.brains / f"{Path(scan).name}_desc-brain_mask.nii.gz"
        save(stored((array > 50).astype(np.uint8), axes, affine), brain)
        if mask:
            save(stored(lesion * (not healthy), axes, affine), self.root / f"{mask}.nii.gz")

    def prepare(self, *more, code: int = 0):
        return prepare("bids", self.root, self.out_dir, "--brains_dir", self.brains, *more, code=code)

    def refused(self, *more) -> str:
        return self.prepare(*more, code=2).err.splitlines()[-1]

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.out_dir / "cohort.csv")


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_sessions_runs_and_acquisitions_are_told_apart(folder, tmp_path):
    for name in ("sub-1_ses-1_run-1", "sub-1_ses-1_run-2", "sub-1_ses-2", "sub-2_acq-hi", "sub-2_acq-lo", "p3"):
        folder.add(f"x/{name}_T1w", f"derivatives/masks/{name}_label-L_mask")
    folder.prepare()
    assert folder.table.scan.is_unique and len(folder.table) == 6
    assert folder.table.subject.astype(str).tolist() == ["p3", "1", "1", "1", "2", "2"]
    assert len(list((folder.out_dir / "Masks").iterdir())) == len(list((folder.out_dir / "Brains").iterdir())) == 6
    originals = {case.name: case for case in find_cases(folder.root, LAYOUTS["bids"])}
    for path in restore(folder.out_dir / "Masks", folder.out_dir, tmp_path / "native"):
        case = originals[path.name.replace("_prediction", "")]
        require_same_mask(path, case.mask, case.scan)


def test_masks_of_brains_and_tissue_are_no_lesion_masks_wherever_they_lie(folder):
    folder.add("sub-1_T1w", "derivatives/lesions/sub-1_T1w_mask")
    (mask,) = folder.root.rglob("*_mask.nii.gz")
    for name in ("derivatives/fs/sub-1_dseg", "sub-1_desc-brain_mask", "Brains/sub-1_mask", "elsewhere/sub-1_mask"):
        path = folder.root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(mask if "elsewhere" not in name else next(folder.brains.iterdir()), path)
    folder.brains = folder.root / "elsewhere"
    done = folder.prepare()
    assert "Left out: 3 brain masks" in done.out and "1 tissue segmentation (sub-1_dseg.nii.gz)" in done.out
    assert folder.table["mask"].tolist() == ["sub-1_T1w_mask.npy"] and folder.table.brain.tolist() == ["given"]


def test_spacing_is_the_median_and_the_grid_holds_every_brain(folder, tmp_path):
    sizes = {"a": (9.0, "LPS"), "b": (10.0, "RAS"), "c": (12.0, "PSR"), "d": (10.0, "LAS")}
    for name, (spacing, axes) in sizes.items():
        folder.add(f"sub-{name}_T1w", f"sub-{name}_lesion", axes, spacing, (20, 24, 18 + ord(name) % 5))
    done = folder.prepare()
    assert "Voxels of 10 x 10 x 10 mm (D x H x W; the median" in done.out
    assert "2 scans of another size will be resampled" in done.out
    assert set(folder.table.spacing_mm) == {"10.0 10.0 10.0"} and folder.table["shape"].nunique() == 1
    kept = folder.table.lesion_cm3 / folder.table.source_lesion_cm3
    assert kept[[1, 3]].tolist() == [1, 1] and kept.between(0.6, 1.4).all()
    for path in (folder.out_dir / "Brains").iterdir():
        own = nib.load(folder.brains / f"{path.stem}.nii.gz")
        own_mm3 = np.count_nonzero(own.dataobj) * np.prod(own.header.get_zooms())
        assert np.load(path).sum() * 1000 == pytest.approx(own_mm3, rel=0.1)
    restored = restore(folder.out_dir / "Masks", folder.out_dir, tmp_path / "native")
    for path, case in zip(restored, find_cases(folder.root, LAYOUTS["bids"]), strict=True):
        if "sub-b" in path.name or "sub-d" in path.name:  # not resampled
            require_same_mask(path, case.mask, case.scan)


def test_a_subject_more_moves_the_whole_cohort_to_a_grid_that_holds_it(folder):
    folder.add("sub-1_T1w", "sub-1_lesion")
    folder.prepare()
    (before,) = folder.table["shape"]
    folder.add("sub-2_T1w", "sub-2_lesion", shape=(30, 24, 18), healthy=True)
    folder.prepare()
    (after,) = folder.table["shape"].unique()
    assert before != after and folder.table.lesion_voxels.tolist() == [27, 0]
    assert {np.load(path).shape for path in (folder.out_dir / "Scans").iterdir()} == {(1, *map(int, after.split()))}


def test_patterns_choose_scans_and_masks(folder):
    folder.add("site/sub-1_T1w", "rater1/sub-1_T1w_roi")
    folder.add("site/sub-1_FLAIR", "rater2/sub-1_T1w_roi")
    shutil.rmtree(folder.brains)
    folder.add("site/sub-2_T1w", "rater1/sub-2_T1w_roi")
    folder.add("other/sub-1_T1w", None)
    line = folder.refused()
    assert "--scan_pattern and --mask_pattern choose among the files" in line
    done = folder.prepare("--scan_pattern", "site/*_t1W", "--mask_pattern", "rater1/*_roi.nii.gz")
    assert len(folder.table) == 2 and "Left out: 3 other volumes" in done.out


def test_scan_that_is_linked_by_datalad_is_followed(folder, tmp_path):
    folder.add("sub-1_T1w", "sub-1_lesion")
    scan, annexed = folder.root / "sub-1_T1w.nii.gz", tmp_path / "annex/MD5E-s1--0.nii.gz"
    annexed.parent.mkdir()
    scan.rename(annexed)
    scan.symlink_to(annexed)
    folder.prepare()
    assert folder.table.scan.tolist() == ["sub-1_T1w.npy"]
    record = json.loads((folder.out_dir / "Geometry/sub-1_T1w.json").read_text())
    assert (record["source"], record["mask"]) == ("sub-1_T1w.nii.gz", "sub-1_lesion.nii.gz")
    annexed.unlink()
    assert "datalad get" in folder.refused()


@pytest.mark.parametrize("out_dir", ["raw", "raw/Base", "."])
def test_what_was_prepared_in_or_around_the_root_is_not_prepared_again(folder, out_dir):
    folder.add("x/sub-1_T1w", "x/sub-1_lesion")
    folder.out_dir = folder.root.parent / out_dir
    for _ in range(2):
        done = folder.prepare("--ext", ".nii.gz")
        assert "--root: 1 scan with its mask" in done.out and folder.table.lesion_voxels.tolist() == [27]


def spoil(folder: Folder, how: str) -> None:
    scan, mask = (folder.root / f"sub-1_{what}.nii.gz" for what in ("T1w", "lesion"))
    (brain,) = folder.brains.glob("sub-1_*")
    image = nib.load(mask)
    if how == "no mask":
        mask.unlink()
    elif how == "same name":
        folder.add("again/sub-1_T1w", None)
    elif how == "mask elsewhere":
        save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4, k=3) * 500), mask)
    elif how == "no brain":
        brain.unlink()
    elif how == "brain on another grid":
        save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), brain)
    elif how == "empty brain":
        save(nib.Nifti1Image(np.asarray(image.dataobj) * 0, image.affine), brain)
    elif how == "channels":
        array = np.asarray(nib.load(scan).dataobj)
        save(nib.Nifti1Image(np.stack([array, array], -1), image.affine), scan)


@pytest.mark.parametrize(
    ("how", "arguments", "line"),
    [
        ("no mask", [], "sub-1_T1w.nii.gz has no mask in --root"),
        ("same name", [], "have the same name"),
        ("mask elsewhere", [], "sub-1_lesion.nii.gz lies outside the head"),
        ("no brain", [], "sub-1_T1w.nii.gz has no brain mask in --brains_dir"),
        ("brain on another grid", [], "desc-brain_mask.nii.gz has shape"),
        ("empty brain", [], "desc-brain_mask.nii.gz is empty"),
        ("channels", [], "has 1 channel, not 2"),
        ("channels", ["--scan_dim", 1, 30, 30, 30], "sub-1_T1w.nii.gz has 2 channels, not 1"),
        ("", ["--scan_dim", 1, 10, 20, 6], "has a brain larger than the grid"),
        ("", ["--scan_pattern", "*_T2w"], "holds no NIfTI scan named *_T2w; check the folder and --scan_pattern"),
        ("", ["--mask_pattern", "*_roi"], "holds no lesion mask named *_roi"),
        ("", ["--dataset", "isles-dwi", "--scan_pattern", "*"], "--scan_pattern is for --dataset bids"),
    ],
)
def test_mistake_ends_in_a_line_before_any_work(folder, how, arguments, line):
    for number in (1, 2):
        folder.add(f"sub-{number}_T1w", f"sub-{number}_lesion")
    spoil(folder, how)
    assert line in folder.refused(*arguments)
    assert not (folder.out_dir / "cohort.csv").exists()


def test_npy_and_a_missing_out_dir_are_refused(tmp_path):
    np.save(tmp_path / "sub-1_T1w.npy", block()[0])
    command = [PREPARE, "--dataset", "bids", "--root", tmp_path]
    assert "--out_dir is missing" in run_here(*command, code=2).err
    assert "holds no NIfTI scan;" in run_here(*command, "--out_dir", tmp_path / "Base", code=2).err
