"""Versions that are raised by hand: nobody changes what they stand for and forgets them."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from skimage.measure import block_reduce

from data.files.names import brain_name
from data.files.nifti import affine_of
from data.files.volumes import write_volume
from data.phantom.cohort import PHANTOM_VERSION, make_subject
from data.scans.cohort import Case, pair_cases
from data.scans.fingerprints import PREPARATION_VERSION
from data.scans.grid import Grid
from data.scans.open import open_cohort
from data.scans.prepared import PARTS
from data.settings import PhantomSettings
from tests.drawn import ball
from tests.running import GRID, QUICK, ROI, ROOT, run_script

# The digest of what each version makes.
PREPARED = {1: "c6af59db878c678d", 2: "c6af59db878c678d"}  # 2: brains are found otherwise
PHANTOMS = {5: "29641529c8978f8e"}
PACKAGES = ["augmentation", "data", "models", "report", "runner", "utils"]


def digest(*arrays: np.ndarray | None) -> str:
    """Of the shapes, types and values of arrays; those of real numbers are rounded, as processors differ in digits."""
    content = hashlib.blake2b(digest_size=8)
    for array in arrays:
        if array is not None and array.dtype.kind == "f":
            array = np.round(array.astype(np.float32) * 256).astype(array.dtype)
        content.update(b"none" if array is None else f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return content.hexdigest()


def draw(folder: Path) -> list[Case]:
    """A ball of whole numbers at 4 mm with a lesion, and its brain beside it."""
    scan, brain = ball(noise=3.0)
    lesion = np.zeros_like(brain)
    lesion[8:13, 10:14, 9:16] = True
    volumes = {"Scans/sub-1_T1w": np.round(scan), "Masks/sub-1_mask": lesion, "Brains/sub-1_brain_mask": brain}
    for name, array in volumes.items():
        dtype = np.float32 if array.dtype != bool else np.uint8
        write_volume(folder / f"{name}.nii.gz", array[None].astype(dtype), affine_of((4, 4, 4)))
    return pair_cases([folder / "Scans"], [folder / "Masks"])


def test_scan_is_prepared_as_its_version_says(tmp_path):
    cohort = open_cohort(draw(tmp_path), grid=Grid((1, 20, 32, 26)))
    parts = []
    for grid in (cohort.grid, Grid((1, 16, 24, 22), spacing_mm=(6.0, 5.0, 5.0)), Grid((1, 20, 32, 26), (24, 24))):
        prepared = replace(cohort, grid=grid).prepare(cohort.cases[0])
        parts += [getattr(prepared, part) for part in PARTS]
    assert PREPARED.get(PREPARATION_VERSION) == digest(*parts), (
        "scans are prepared differently: raise PREPARATION_VERSION in data/scans/fingerprints.py, "
        f"and store {digest(*parts)} for it here"
    )


def test_synthetic_subject_is_drawn_as_its_version_says():
    parts = []
    for modality in ("t1w", "flair", "dwi"):  # subject 3 has lesions that are made to stand out
        subject = make_subject(PhantomSettings(spacing=(8.0, 8.0, 8.0), modality=modality, healthy_fraction=0), 3)
        # Means of blocks: hardly one is so near to the next number that another processor rounds it there.
        parts += [np.round(block_reduce(subject.scan, (1, 4, 4, 4), np.mean)), subject.mask, subject.brain]
    assert PHANTOMS.get(PHANTOM_VERSION) == digest(*parts), (
        "synthetic scans are drawn differently: raise PHANTOM_VERSION in data/phantom/cohort.py, "
        f"and store {digest(*parts)} for it here"
    )


# --- edits that change no result -------------------------------------------------------------------------


def copy_program(folder: Path) -> Path:
    """A copy of the program with a comment in every file of the phantom and of the plots."""

    def ignored(parent: str, names: list[str]) -> list[str]:
        on_disk = [name for name in names if Path(parent) == ROOT / "data" and is_data(Path(parent, name))]
        return ["__pycache__", *on_disk]

    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, folder)
    edited = [*(folder / "data/phantom").rglob("*.py"), *(folder / "utils").glob("plots*.py")]
    assert len(edited) > 5
    for file in edited:
        file.write_text(f"# A comment.\n{file.read_text()}")
    return folder


def is_data(path: Path) -> bool:
    return path.is_dir() and not (path / "__init__.py").exists()


def stripped_scans(cohort: Path, folder: Path, n: int) -> list:
    """The arguments of a cohort of some stripped scans, whose brains are yet to be found."""
    for part in ("Scans", "Masks"):
        (folder / part).mkdir(parents=True)
        for path in sorted((cohort / part).iterdir())[:n]:
            shutil.copy(path, folder / part)
    for path in (folder / "Scans").iterdir():
        brain = np.load(cohort / "Brains" / brain_name(path))
        np.save(path, np.load(path) * brain)
    return ["--scans_dir", folder / "Scans", "--masks_dir", folder / "Masks"]


def times(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*.*") if path.is_file()}


def test_comment_in_the_phantom_or_the_plots_leaves_scans_brains_slices_and_folds_valid(cohort, tmp_path):
    scans = stripped_scans(cohort, tmp_path / "cohort", 4)
    cut = ["-m", "data.slices", *scans, "--out_dir", tmp_path / "slices", *GRID]
    validate = [*scans, "--model_prefix", "cv", "--rpn_model_prefix", "cv", "--k", 2, "--splits", 25, 25, 50]
    validate += ["--folds_to_run", 0]
    validate += ["--max_epochs", 1, "--rpn_max_epochs", 1, "--rpn_image_size", 64, "--offline", "--logger", "csv"]
    validate += ["--score_threshold", 0.02, "--n_predictions", 1, *GRID, *ROI, *QUICK]
    run_script(*cut, cwd=tmp_path)
    run_script("cross_validation.py", *validate, cwd=tmp_path)
    run = tmp_path / "StrokeFormer/cv"
    made = [run / "cache", *(tmp_path / "slices" / part for part in ("cache", "Scans", "Masks", "Brains"))]
    made += list(tmp_path.glob("*/cv_fold-*/checkpoints"))
    before = times(*made)
    for kind in ("cv/cache/*/scan.npy", "cv/cache/brains/*", "cv_fold-*/checkpoints/best.ckpt"):
        assert any((tmp_path / "StrokeFormer").glob(kind)), kind

    program = copy_program(tmp_path / "program")
    run_script(*cut, cwd=program)
    said = run_script(program / "cross_validation.py", *validate, cwd=tmp_path).out
    assert (program / "models/__pycache__").is_dir() and (program / "data/slices/__pycache__").is_dir()
    assert "Fold 1 is trained and tested already" in said
    assert times(*made) == before
