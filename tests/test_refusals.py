"""Mistakes a user can make: each is run through the real script and refused with one line, before any work."""

import gzip
import json
import pickle
import shutil
import time
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import nibabel as nib
import numpy as np
import pytest
import torch

from data.files.volumes import read_volume, write_volume
from models.checkpoints import store_hyperparameters
from tests.running import GRID, QUICK, ROI, ROOT, run_script
from utils.errors import UserError

AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])


def refused(*command, cwd: Path, largest_file: int | None = None) -> str:
    """The one line on stderr with which a command is refused, quickly enough that no long work began."""
    started = time.monotonic()
    done = run_script(*command, cwd=cwd, code=2, largest_file=largest_file)
    lines = [line for line in done.err.splitlines() if "error:" in line]
    assert "Traceback" not in done.err and done.err.rstrip().endswith(lines[-1])
    assert time.monotonic() - started < 60 and len(lines) == 1, lines
    return lines[0]


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


# --- broken files --------------------------------------------------------------------------------------


class Files:
    """Three subjects of the synthetic cohort as files that a test may break: the second of each kind."""

    def __init__(self, cohort: Path, root: Path, ext: str) -> None:
        self.root, self.scans, self.masks = root, root / "Scans", root / "Masks"
        for folder in ("Scans", "Masks", "Brains"):
            for path in sorted((cohort / folder).iterdir())[:3]:
                volume = read_volume(path, np.float32 if folder == "Scans" else np.uint8)
                write_volume(root / folder / f"{path.stem}{ext}", volume.array, AFFINE)
        self.scan, self.mask = sorted(self.scans.iterdir())[1], sorted(self.masks.iterdir())[1]

    def edit_scan(self, change) -> None:
        np.save(self.scan, change(np.load(self.scan)))

    def edit_mask(self, change) -> None:
        np.save(self.mask, change(np.load(self.mask)))

    def edit_header(self, path: Path, **fields) -> None:
        """Overwrite fields of a NIfTI header, whatever nibabel thinks of them."""
        raw = bytearray(gzip.decompress(path.read_bytes()))
        header = np.frombuffer(raw[:348], nib.Nifti1Header.template_dtype).copy()
        for name, value in fields.items():
            header[name] = value
        raw[:348] = header.tobytes()
        path.write_bytes(gzip.compress(bytes(raw)))


def put(where, value):
    """An array with `value` at the flat index `where`."""

    def change(array):
        array.flat[where] = value
        return array

    return change


def outside_the_head(mask: np.ndarray) -> np.ndarray:
    mask[:] = 0
    mask[0, :2, :2, :2] = 1
    return mask


def unpickled_by_nobody(path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (path.parent / "owned",))

    np.save(path, np.array([Evil()]), allow_pickle=True)


def double(path: Path) -> None:
    shutil.copy(path, path.with_name(path.name.replace("_space-", "_space-other")))


CV, SLICES, SEGMENT = "cross_validation.py", "data.slices", "test_strokeformer.py"
# What is broken: the script that meets it, how to break it, the file that the message names, and the complaint.
BROKEN_NPY = {
    "no mask": (CV, lambda f: f.mask.unlink(), "scan", "has no mask"),
    "no scan": (CV, lambda f: f.scan.unlink(), "mask", "has no scan"),
    "a scan twice": (CV, lambda f: double(f.scan), "scan", "same subject and session"),
    "a mask twice": (CV, lambda f: double(f.mask), "mask", "same subject and session"),
    "no scans at all": (CV, lambda f: shutil.rmtree(f.scans) or f.scans.mkdir(), "scans", "holds no .npy volume"),
    "masks for scans": (
        CV,
        lambda f: shutil.rmtree(f.scans) or (f.masks.rename(f.scans) and f.masks.mkdir()),
        "scans",
        "holds masks only",
    ),
    "files nobody reads": (
        CV,
        lambda f: [p.rename(p.with_suffix(".mha")) for p in f.scans.iterdir()],
        "scans",
        "holds no .npy volume",
    ),
    "a mask of another shape": (CV, lambda f: f.edit_mask(lambda a: a[:, :-1]), "mask", "resample one onto the other"),
    "a scan of another shape": (
        SLICES,
        lambda f: [shutil.rmtree(f.root / "Brains"), f.edit_scan(lambda a: a[:, 1:]), f.edit_mask(lambda a: a[:, 1:])],
        "scan",
        "--resize_to",
    ),
    "two channels": (SEGMENT, lambda f: f.edit_scan(lambda a: np.concatenate([a, a])), "scan", "has 2 channels"),
    "a mask of two channels": (CV, lambda f: f.edit_mask(lambda a: np.concatenate([a, a])), "mask", "2 channels"),
    "a slice for a volume": (SLICES, lambda f: f.edit_scan(lambda a: a[0, 0]), "scan", "a volume is"),
    "five dimensions": (SLICES, lambda f: f.edit_scan(lambda a: a[None]), "scan", "a volume is"),
    "no voxels": (SLICES, lambda f: f.edit_scan(lambda a: a[:, :0]), "scan", "a volume is"),
    "complex numbers": (SLICES, lambda f: f.edit_scan(lambda a: a.astype(complex)), "scan", "real numbers"),
    "words": (SLICES, lambda f: f.edit_scan(lambda a: a.astype(str)), "scan", "real numbers"),
    "half a file": (SEGMENT, lambda f: f.scan.write_bytes(f.scan.read_bytes()[:999]), "scan", "cannot be read"),
    "half a mask": (CV, lambda f: f.mask.write_bytes(f.mask.read_bytes()[:999]), "mask", "cannot be read"),
    "an empty file": (SLICES, lambda f: f.scan.write_bytes(b""), "scan", "cannot be read"),
    "text": (SLICES, lambda f: f.scan.write_text("see attachment"), "scan", "cannot be read"),
    "a pickle that runs code": (SLICES, lambda f: unpickled_by_nobody(f.scan), "scan", "cannot be read"),
    "a bare pickle": (SLICES, lambda f: f.scan.write_bytes(pickle.dumps({})), "scan", "cannot be read"),
    "an archive": (SLICES, lambda f: np.savez(f.scan.open("wb"), a=np.zeros(3)), "scan", "archive"),
    "NaN": (SLICES, lambda f: f.edit_scan(put(99, np.nan)), "scan", "NaN"),
    "infinity": (SEGMENT, lambda f: f.edit_scan(put(99, np.inf)), "scan", "infinite"),
    "numbers too large": (SLICES, lambda f: f.edit_scan(lambda a: a.astype(float) * 1e300), "scan", "infinite"),
    "a constant scan": (SLICES, lambda f: f.edit_scan(np.ones_like), "scan", "constant"),
    "a scan of one voxel": (SLICES, lambda f: f.edit_scan(lambda a: put(99, 1)(0 * a)), "scan", "shows no head"),
    "a mask of labels": (SLICES, lambda f: f.edit_mask(put(99, 3)), "mask", "not binary"),
    "a mask of probabilities": (SLICES, lambda f: f.edit_mask(lambda a: 0.7 * a), "mask", "not binary"),
    "NaN in a mask": (SLICES, lambda f: f.edit_mask(lambda a: put(99, np.nan)(a.astype(float))), "mask", "not binary"),
    "a mask in the air": (SLICES, lambda f: f.edit_mask(outside_the_head), "mask", "outside the head"),
    "a table without numbers": (
        SLICES,
        lambda f: (f.root / "cohort.csv").write_text(f"scan,spacing_mm\n{f.scan.name},wide\n"),
        "table",
        "three numbers",
    ),
}
BROKEN_NIFTI = {
    "a mask elsewhere": (CV, lambda f: f.edit_header(f.mask, srow_x=[8, 0, 0, 40]), "mask", "the affines differ"),
    "a mask a voxel off": (CV, lambda f: f.edit_header(f.mask, srow_z=[0, 0, 8, 8]), "mask", "the affines differ"),
    "half a file": (SLICES, lambda f: f.scan.write_bytes(f.scan.read_bytes()[:-999]), "scan", "cannot be read"),
    "not compressed": (
        SLICES,
        lambda f: f.scan.write_bytes(gzip.decompress(f.scan.read_bytes())),
        "scan",
        "cannot be read",
    ),
    "a header that lies": (
        SLICES,
        lambda f: f.edit_header(f.scan, dim=[3, 30000, 30000, 300, 1, 1, 1, 1]),
        "scan",
        "MiB; crop or resample",
    ),
    "a header that claims too much": (
        SLICES,
        lambda f: f.edit_header(f.scan, dim=[3, 900, 900, 300, 1, 1, 1, 1]),
        "scan",
        "shorter than its header says",
    ),
    "a negative dimension": (
        SLICES,
        lambda f: f.edit_header(f.scan, dim=[3, -4, 25, 24, 1, 1, 1, 1]),
        "scan",
        "a volume is",
    ),
    "a time series": (
        SEGMENT,
        lambda f: nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 7)), AFFINE), f.scan),
        "scan",
        "has 7 channels",
    ),
    "colours": (SLICES, lambda f: f.edit_header(f.scan, datatype=128, bitpix=24), "scan", "real numbers"),
    "an affine of zeros": (
        SLICES,
        lambda f: f.edit_header(f.scan, srow_x=0, srow_y=0, srow_z=0),
        "scan",
        "fix its header",
    ),
    "an affine of NaN": (SLICES, lambda f: f.edit_header(f.scan, srow_x=np.nan), "scan", "fix its header"),
}
ALL_BROKEN = [(name, ".npy", *how) for name, how in BROKEN_NPY.items()]
ALL_BROKEN += [(name, ".nii.gz", *how) for name, how in BROKEN_NIFTI.items()]


def command_on(script: str, files: Files, ext: str, workspace) -> list:
    folders = ["--scans_dir", files.scans, "--masks_dir", files.masks, "--ext", ext, *GRID]
    return {
        CV: [CV, *folders, "--model_prefix", "a", "--rpn_model_prefix", "b", "--k", 2, "--splits", 25, 25, 50, *ROI],
        SLICES: ["-m", SLICES, *folders, "--out_dir", "slices"],
        SEGMENT: [SEGMENT, "--scans", files.scans, "--masks", files.masks, "--ckpt_path", workspace.seg, *GRID],
    }[script]


@pytest.mark.parametrize(
    ("ext", "script", "breaks", "culprit", "complaint"),
    [row[1:] for row in ALL_BROKEN],
    ids=[f"{row[0]} ({row[1]})" for row in ALL_BROKEN],
)
def test_broken_files_are_refused_by_name_and_leave_nothing(
    cohort, workspace, tmp_path, ext, script, breaks, culprit, complaint
):
    files = Files(cohort, tmp_path / "data", ext)
    named = {"scan": files.scan, "mask": files.mask, "scans": files.scans, "table": files.root / "cohort.csv"}[culprit]
    breaks(files)
    before = files_below(tmp_path)
    line = refused(*command_on(script, files, ext, workspace), cwd=tmp_path)
    assert str(named) in line and complaint in line, line
    assert ";" in line, line  # what is wrong; how to fix it
    assert files_below(tmp_path) == before


def test_paths_with_spaces_and_foreign_letters_work(cohort, tmp_path):
    files = Files(cohort, tmp_path / "Läsionen 2 ü — 脳", ".nii.gz")
    out_dir = tmp_path / "Ausgabe für später"
    run_script(
        *["-m", SLICES, "--scans_dir", files.scans, "--masks_dir", files.masks, "--ext", ".nii.gz", *GRID],
        *["--out_dir", out_dir],
        cwd=tmp_path,
    )
    assert len(list((out_dir / "Brains").glob("*.npy"))) == 3


# --- slices --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "part", "change", "complaint"),
    [
        ("train_rpn.py", "Scans", put(9, np.nan), "NaN"),
        ("test_rpn.py", "Scans", lambda a: a[:, 1:], "shape"),
        ("train_rpn.py", "Scans", lambda a: np.concatenate([a, a]), "2 channels"),
        ("test_rpn.py", "Scans", lambda a: a[0], "a slice is"),
        ("train_rpn.py", "Masks", put(9, 3), "not binary"),
        ("test_rpn.py", "Masks", lambda a: a[:, 1:], "shape"),
    ],
)
def test_broken_slices_are_refused_by_name(workspace, tmp_path, script, part, change, complaint):
    shutil.copytree(workspace.slices.parent, tmp_path / "slices")
    scans, masks = tmp_path / "slices/Scans", tmp_path / "slices/Masks"
    broken = sorted((tmp_path / "slices" / part).iterdir())[20]
    np.save(broken, change(np.load(broken)))
    arguments = {
        "train_rpn.py": [
            *["--train_scans", scans, "--train_masks", masks, "--val_scans", scans, "--val_masks", masks],
            *["--model_prefix", "a", *QUICK],
        ],
        "test_rpn.py": ["--scans", scans, "--masks", masks, "--ckpt_path", workspace.rpn],
    }[script]
    (tmp_path / "run").mkdir()
    line = refused(script, *arguments, *ROI, cwd=tmp_path / "run")
    assert str(broken) in line and complaint in line and not files_below(tmp_path / "run")


# --- folders and disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["default_root_dir", "rpn_default_root_dir", "scores_dir", "rpn_scores_dir"])
def test_folders_that_take_no_files_are_refused_before_the_work(cohort, tmp_path, argument):
    line = refused(*cv(cohort, **{argument: "/dev/null/results"}), *GRID, *ROI, cwd=tmp_path)
    assert f"--{argument} /dev/null/results" in line and "choose another folder" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["slices", "prepare", "restore", "test_rpn", "test_strokeformer"])
def test_other_commands_refuse_such_folders_too(workspace, tmp_path, command):
    (tmp_path / "a_prediction.npy").touch()
    (tmp_path / "run.json").write_text('{"settings": {"root": "/"}}')
    bids = [tmp_path / f"sub-1_space-MNI152NLin2009aSym_{what}.nii.gz" for what in ("T1w", "T1lesion_mask")]
    for path in bids:
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), AFFINE), path)
    record = {"source": str(bids[0])[1:], "mask": str(bids[1])[1:], "made_of": "", "shape": [1, 1, 1], "row": {}}
    (tmp_path / "Geometry").mkdir()
    (tmp_path / "Geometry/a.json").write_text(json.dumps({**record, "affine": AFFINE.tolist()}))
    scans = ["--scans_dir", workspace.scans, "--masks_dir", workspace.masks, *GRID]
    arguments = {
        "slices": ["-m", "data.slices", *scans, "--out_dir"],
        "prepare": ["-m", "data.prepare", "--dataset", "atlas", "--root", tmp_path, "--out_dir"],
        "restore": ["-m", "data.restore", "--predictions", tmp_path, "--prepared_dir", tmp_path, "--out_dir"],
        "test_rpn": [
            "test_rpn.py",
            "--scans",
            workspace.slices,
            "--masks",
            workspace.slice_masks,
            "--ckpt_path",
            workspace.rpn,
            "--scores_dir",
        ],
        "test_strokeformer": [
            "test_strokeformer.py",
            "--scans",
            workspace.scans,
            "--ckpt_path",
            workspace.seg,
            *GRID,
            "--scores_dir",
        ],
    }[command]
    assert "/dev/null/results cannot be written" in refused(*arguments, "/dev/null/results", cwd=tmp_path)


def test_full_disk_ends_cutting_and_preparing_with_whole_files_only(cohort, tmp_path):
    files = Files(cohort, tmp_path / "data", ".nii.gz")
    scans = ["--scans_dir", files.scans, "--masks_dir", files.masks, "--ext", ".nii.gz", *GRID]
    root = ["--dataset", "atlas", "--root", files.root, "--scan_dim", 1, 24, 25, 29, "--spacing", 8, 8, 8]
    for command in (["-m", "data.slices", *scans], ["-m", "data.prepare", *root]):
        out_dir = tmp_path / command[1]
        line = refused(*command, "--out_dir", out_dir, cwd=tmp_path, largest_file=12_000)
        assert str(out_dir) in line and "cannot be written" in line
        assert not any(path.name.startswith(".") for path in files_below(out_dir))
        assert all(np.load(path).size for path in out_dir.rglob("*.npy"))


def test_full_disk_ends_training_with_one_line(workspace, tmp_path):
    scans = ["--train_scans", workspace.slices, "--train_masks", workspace.slice_masks]
    scans += ["--val_scans", workspace.slices, "--val_masks", workspace.slice_masks]
    command = ["train_rpn.py", *scans, "--model_prefix", "a", "--image_size", 32, "--max_epochs", 1, *ROI, *QUICK]
    line = refused(*command, cwd=tmp_path, largest_file=500_000)
    assert "RPN/a/checkpoints/best.ckpt cannot be written" in line  # and no temporary file elsewhere
    assert not list(tmp_path.rglob("finished.json")) and not list(tmp_path.rglob("*.ckpt"))


def test_full_disk_after_training_leaves_the_checkpoint_as_it_was(workspace, tmp_path):
    checkpoint = Path(shutil.copy(workspace.rpn, tmp_path / "best.ckpt"))
    soft, hard = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=f"{checkpoint} cannot be written"):
            store_hyperparameters(checkpoint, score_threshold=0.5)
    finally:
        setrlimit(RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [checkpoint] and checkpoint.read_bytes() == workspace.rpn.read_bytes()


def test_table_that_is_none_of_scores_is_not_overwritten(workspace, tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/volumes.csv").write_text("my notes\n")
    command = ["test_strokeformer.py", "--scans", workspace.scans, "--ckpt_path", workspace.seg, *GRID]
    assert "scores/volumes.csv is no table of scores" in refused(*command, cwd=tmp_path)
    assert (tmp_path / "scores/volumes.csv").read_text() == "my notes\n"


def test_metadata_without_masks_or_without_the_subjects_are_refused(workspace, tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-9\t60\n")
    command = ["test_strokeformer.py", "--scans", workspace.scans, "--ckpt_path", workspace.seg, *GRID]
    command += ["--metadata", "participants.tsv"]
    assert "--metadata groups scores, which take --masks" in refused(*command, cwd=tmp_path)
    complaint = refused(*command, "--masks", workspace.masks, cwd=tmp_path)
    assert "--metadata participants.tsv has none of the subjects, such as r001s001" in complaint


# --- preparing and restoring ---------------------------------------------------------------------------


def test_prepare_refuses_data_sets_that_are_not_whole(cohort, tmp_path):
    files = Files(cohort, tmp_path / "data", ".nii.gz")
    common = ["-m", "data.prepare", "--dataset", "atlas", "--out_dir", tmp_path / "out", "--root"]
    assert "/no/such does not exist" in refused(*common, "/no/such", cwd=tmp_path)
    assert "holds no NIfTI scan named" in refused(*common, files.masks, cwd=tmp_path)
    files.mask.unlink()
    assert f"{files.scan} has no mask" in refused(*common, files.root, cwd=tmp_path)
    assert not (tmp_path / "out").exists()


def test_restore_refuses_what_was_not_prepared(tmp_path):
    np.save(tmp_path / "a_prediction.npy", np.zeros((1, 2, 2, 2)))
    common = [
        "-m",
        "data.restore",
        "--predictions",
        tmp_path,
        "--prepared_dir",
        tmp_path,
        "--out_dir",
        tmp_path / "out",
    ]
    assert "run.json" in refused(*common, cwd=tmp_path)
    (tmp_path / "run.json").write_text('{"settings": {"root": "/"}}')
    assert "a_prediction.npy is no prediction of a scan in" in refused(*common, cwd=tmp_path)
    (tmp_path / "Geometry").mkdir()
    (tmp_path / "Geometry/a.json").write_text("{}")
    assert "a.json is no record of a prepared scan" in refused(*common, cwd=tmp_path)
    record = {"source": "no/such.nii.gz", "mask": "", "made_of": "", "shape": [2, 2, 2], "row": {}}
    (tmp_path / "Geometry/a.json").write_text(json.dumps({**record, "affine": AFFINE.tolist()}))
    assert "/no/such.nii.gz" in refused(*common, cwd=tmp_path)
    assert not (tmp_path / "out").exists()


# --- arguments ------------------------------------------------------------------------------------------


def cv(cohort, **changes):
    arguments = {"scans_dir": cohort / "Scans", "masks_dir": cohort / "Masks", "model_prefix": "a"}
    arguments |= {"rpn_model_prefix": "b", **changes}
    return ["cross_validation.py", *(x for k, v in arguments.items() for x in (f"--{k}", *np.atleast_1d(v)))]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scans_dir": "/no/such"}, "--scans_dir /no/such does not exist"),
        ({"ext": ".nii.gz"}, "holds no .nii.gz volume"),
        ({"ext": ".mha"}, "none of .npy, .nii, .nii.gz"),
        ({"splits": [70, 20, 20]}, "must sum to 100"),
        ({"splits": [90, 0, 10]}, "at least 1"),
        ({"k": 0}, "--k"),
        ({"k": 7}, "--k 7"),
        ({"overlap": 1.0}, "--overlap"),
        ({"seg_loss_cfg": "{"}, "--seg_loss_cfg"),
        ({"seg_loss": "NoLoss"}, "--seg_loss NoLoss"),
        ({"roi_size": [60, 64, 64]}, "--roi_size"),
        ({"folds": "/no/such.json"}, "/no/such.json"),
        ({"transforms": "explode"}, "--transforms"),
        ({"rpn_backbone_weights": "/no/such.pth"}, "/no/such.pth"),
    ],
)
def test_cross_validation_refuses_bad_arguments(cohort, tmp_path, changes, complaint):
    assert complaint in refused(*cv(cohort, **changes), cwd=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"a.npy": {}}', '{"a.npy": {"mask": "m", "recipient": "1", "donors": []}}']
)
def test_augmented_folder_without_sound_provenance_is_refused(cohort, tmp_path, content):
    if content is not None:
        (tmp_path / "provenance.json").write_text(content)
    line = refused(*cv(cohort, augmented_dir=tmp_path), "--use_augmented", *GRID, *ROI, cwd=tmp_path)
    assert "provenance.json" in line and files_below(tmp_path) <= {tmp_path / "provenance.json"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ckpt_path", "/no/such.ckpt"], "/no/such.ckpt does not exist"),
        (["--ckpt_path", "{rpn}"], "is a checkpoint of RPN, not of StrokeFormer"),
        (["--ckpt_path", "{seg}", "--rpn_ckpt_path", "{seg}"], "is a checkpoint of StrokeFormer, not of RPN"),
        (["--ckpt_path", "{seg}", "--regions", "/no/such.json"], "/no/such.json"),
        (["--ckpt_path", "{seg}", "--target_layers", "nothing"], "--target_layers nothing"),
        (["--ckpt_path", "{seg}", "--num_classes", "3"], "--num_classes 3"),
        (["--ckpt_path", "{readme}"], "cannot be read safely"),
    ],
)
def test_segmentation_refuses_bad_arguments(workspace, tmp_path, arguments, complaint):
    names = {"rpn": workspace.rpn, "seg": workspace.seg, "readme": ROOT / "README.md"}
    arguments = [a.format(**names) for a in arguments]
    assert complaint in refused("test_strokeformer.py", "--scans", workspace.scans, *arguments, *GRID, cwd=tmp_path)
    assert not any(tmp_path.iterdir())


def test_checkpoint_that_would_run_code_is_refused(workspace, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": {}, "model": Evil()}, tmp_path / "evil.ckpt")
    command = ["test_rpn.py", "--scans", workspace.slices, "--masks", workspace.slice_masks]
    assert "cannot be read safely" in refused(*command, "--ckpt_path", tmp_path / "evil.ckpt", cwd=tmp_path)
    assert not (tmp_path / "owned").exists()
