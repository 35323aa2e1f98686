"""One list of broken inputs through every door that takes scans: both commands and Python refuse the same, in one line.

The doors are ``test_strokeformer.py``, the runner of exported models, and `strokeformer.segment` with a path, with the
image that nibabel makes of the file, and with an array.
"""

import gzip
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

import runner.__main__ as runner_script
import test_strokeformer
from strokeformer import (
    UserError,
    find_brain,
    lesions,
    load_rpn,
    load_strokeformer,
    propose,
    read_image,
    scores,
    segment,
)
from tests.test_refusals import AFFINE, Files, files_below, put, unpickled_by_nobody
from utils import cli


@pytest.fixture(scope="module")
def networks(workspace, request) -> SimpleNamespace:
    """Both networks as checkpoints, as Python has them and, where onnxruntime is installed, exported."""
    rpn = load_rpn(workspace.rpn, score_threshold=0.01)
    seg = load_strokeformer(workspace.seg, lesion_threshold=0.3, smallest_lesion_cm3=0)
    model = request.getfixturevalue("exported").full if find_spec("onnxruntime") else None
    return SimpleNamespace(checkpoints=(workspace.rpn, workspace.seg), loaded=(rpn, seg), model=model)


class Inputs(Files):
    """A scan, its brain and its lesions as files that a row of the list may break."""

    def __init__(self, cohort: Path, root: Path, ext: str = ".nii.gz") -> None:
        super().__init__(cohort, root, ext)
        self.brain, self.table = sorted((root / "Brains").iterdir())[1], root / "cohort.csv"

    def change(self, path: Path, change) -> None:
        """Write other voxels into a NIfTI."""
        nib.save(nib.Nifti1Image(change(np.asarray(nib.load(path).dataobj)), AFFINE), path)


def message_of(module, capsys, *arguments) -> str | None:
    """The line with which a command ends with exit code 2; None where it runs through."""
    capsys.readouterr()
    words = list(map(str, arguments))
    try:
        cli.run(module.main, lambda: module.parse_args(words))
    except SystemExit as end:
        why = capsys.readouterr().err.partition("error: ")[2]
        assert end.code == 2 and why.count("\n") == 1 and "error:" not in why, why
        return why.rstrip()
    return None


def refusal_of(function, *arguments, **keywords) -> str | None:
    """The line of the `UserError` with which a function refuses; None where it returns."""
    try:
        function(*arguments, **keywords)
    except UserError as error:
        assert "\n" not in str(error) and "/tmp/tmp" not in str(error), error
        return str(error)
    return None


def commands(files: Inputs, networks, capsys) -> dict[str, str | None]:
    """What both commands say of a scan with its brain."""
    rpn, seg = networks.checkpoints
    given = ["--scans", files.scan, "--brains_dir", files.brain]
    stages = ["--rpn_ckpt_path", rpn, "--ckpt_path", seg, "--scores_dir", files.root / "scores", "--n_predictions", 0]
    said = {"script": message_of(test_strokeformer, capsys, *given, *stages)}
    if networks.model:
        stages = ["--model", networks.model, "--out_dir", files.root / "out"]
        said["runner"] = message_of(runner_script, capsys, *given, *stages)
    return said


def image_of(path: Path) -> nib.Nifti1Image | Path:
    """The image of a file; the path where nibabel makes none."""
    try:
        return nib.load(path)
    except Exception:  # nibabel's, gzip's or that of the operating system
        return path


def test_sound_input_comes_through_every_door(cohort, networks, tmp_path, capsys):
    files = Inputs(cohort, tmp_path)
    assert set(commands(files, networks, capsys).values()) == {None}
    scan, brain = nib.load(files.scan), nib.load(files.brain)
    mask = segment(files.scan, *networks.loaded, brain=files.brain)
    assert np.asarray(mask.dataobj).any()
    in_memory = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine, scan.header)
    arrays = {"scan": np.asarray(scan.dataobj), "brain": np.asarray(brain.dataobj) > 0, "affine": scan.affine.tolist()}
    rpn, model = networks.loaded
    for how in ({"scan": scan}, {"scan": scan, "brain": brain}, {"scan": in_memory, "brain": files.brain}, arrays):
        same = segment(**how, rpn=rpn, model=model)
        np.testing.assert_array_equal(same.dataobj, mask.dataobj)
        np.testing.assert_array_equal(same.affine, mask.affine)


# --- voxels --------------------------------------------------------------------------------------------

COLOURS = [(channel, np.uint8) for channel in "RGB"]
# What is wrong with the voxels (H, W, D) of a scan, and a word of the complaint.
VOXELS = {
    "colours": (lambda a: np.zeros(a.shape, COLOURS), "real numbers"),
    "complex numbers": (lambda a: a.astype(np.complex64), "real numbers"),
    "NaN": (put(99, np.nan), "NaN"),
    "infinity": (put(99, np.inf), "infinite"),
    "numbers too large": (lambda a: a * 1e300, "infinite"),
    "one value": (np.ones_like, "constant"),
    "no head": (lambda a: put(99, 1)(0 * a), "shows no head"),
    "one slice": (lambda a: a[:, :, 9:10], "a single slice"),
    "two slices": (lambda a: a[:, 9:11], "two slices"),
    "two dimensions": (lambda a: a[:, :, 9], "has shape"),
    "four volumes": (lambda a: np.stack([a] * 4, -1), "has 4 channels"),
    "five dimensions": (lambda a: a[..., None, None], "has shape"),
    "no voxels": (lambda a: a[:, :0], "has shape"),
}


@pytest.mark.parametrize("what", VOXELS)
def test_scan_of_broken_voxels_is_refused_at_every_door(cohort, networks, tmp_path, capsys, what):
    change, complaint = VOXELS[what]
    files = Inputs(cohort, tmp_path)
    voxels = change(np.asarray(nib.load(files.scan).dataobj, dtype=float))
    image = nib.Nifti1Image(voxels, AFFINE)
    nib.save(image, files.scan)
    before = files_below(tmp_path)
    how = {"brain": files.brain}
    for why in [*commands(files, networks, capsys).values(), refusal_of(segment, files.scan, *networks.loaded, **how)]:
        assert str(files.scan) in why and complaint in why and ";" in why, why
    refusals = [refusal_of(segment, scan, *networks.loaded, **how) for scan in (image, nib.load(files.scan))]
    for why in [*refusals, refusal_of(segment, voxels, *networks.loaded, **how, affine=AFFINE)]:
        assert why.startswith("scan ") and complaint in why and str(tmp_path) not in why, why
    assert files_below(tmp_path) == before


# --- files ---------------------------------------------------------------------------------------------


def end_in(path: Path, byte: int) -> None:
    """Change a byte of the end of a file: of the checksum or the length of what gzip holds."""
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.nii.gz")


def rename(files: Inputs, name: str) -> None:
    files.scan = files.scan.rename(files.scan.with_name(name))


# What is broken: how to break it, the file that the message names, and a word of the complaint.
NIFTI = {
    "half a file": (lambda f: f.scan.write_bytes(f.scan.read_bytes()[:-999]), "scan", "cannot be read"),
    "another checksum": (lambda f: end_in(f.scan, -8), "scan", "is damaged"),
    "an empty file": (lambda f: f.scan.write_bytes(b""), "scan", "cannot be read"),
    "text": (lambda f: f.scan.write_text("see attachment"), "scan", "cannot be read"),
    "not compressed": (lambda f: f.scan.write_bytes(gzip.decompress(f.scan.read_bytes())), "scan", "rename it"),
    "compressed, but not by its name": (lambda f: rename(f, f.scan.stem), "scan", "is compressed"),
    "another magic": (lambda f: f.edit_header(f.scan, magic=b"abc"), "scan", "no NIfTI volume"),
    "more voxels than there are": (
        lambda f: f.edit_header(f.scan, dim=[3, 900, 900, 300, 1, 1, 1, 1]),
        "scan",
        "shorter than its header says",
    ),
    "a negative dimension": (lambda f: f.edit_header(f.scan, dim=[3, -4, 25, 24, 1, 1, 1, 1]), "scan", "has shape"),
    "voxels without size": (
        lambda f: f.edit_header(f.scan, pixdim=[1, 0, 0, 0, 0, 0, 0, 0], sform_code=0, qform_code=0),
        "scan",
        "(pixdim)",
    ),
    "a voxel size of NaN": (lambda f: f.edit_header(f.scan, pixdim=[1, np.nan, 8, 8, 0, 0, 0, 0]), "scan", "(pixdim)"),
    "two voxel sizes": (lambda f: f.edit_header(f.scan, pixdim=[1, 24, 24, 24, 0, 0, 0, 0]), "scan", "(pixdim)"),
    "a voxel size that no scanner has": (lambda f: f.edit_header(f.scan, srow_x=[800, 0, 0, 0]), "scan", "impossible"),
    "an affine of zeros": (lambda f: f.edit_header(f.scan, srow_x=0, srow_y=0, srow_z=0), "scan", "fix its header"),
    "an affine of NaN": (lambda f: f.edit_header(f.scan, srow_x=np.nan), "scan", "fix its header"),
    "another format": (lambda f: rename(f, "sub-1_T1w.mgz"), "scan", "convert it"),
    "a mask by its name": (lambda f: rename(f, "sub-1_mask.nii.gz"), "scan", "is a mask by its name"),
    "no file": (lambda f: f.scan.unlink(), "scan", "does not exist"),
    "a folder without volumes": (lambda f: f.scan.unlink() or f.scan.mkdir(), "scan", ";"),
    "a link to nowhere": (lambda f: link_to_nowhere(f.scan), "scan", "link to a file that is not here"),
    "an empty brain": (lambda f: f.change(f.brain, np.zeros_like), "brain", "is empty"),
    "a brain of another shape": (lambda f: f.change(f.brain, lambda a: a[1:]), "brain", "has shape"),
    "a brain elsewhere": (lambda f: f.edit_header(f.brain, srow_x=[8, 0, 0, 40]), "brain", "lies elsewhere"),
    "a brain of labels": (lambda f: f.change(f.brain, put(99, 7)), "brain", "not binary"),
    "two brains": (lambda f: f.change(f.brain, lambda a: np.stack([a, a], -1)), "brain", "has 2 channels"),
    "a brain of colours": (lambda f: f.change(f.brain, lambda a: np.zeros(a.shape, COLOURS)), "brain", "real numbers"),
    "a brain of text": (lambda f: f.brain.write_text("see attachment"), "brain", "cannot be read"),
    "no brain": (lambda f: f.brain.unlink(), "brain", "does not exist"),
    "a brain that is a link to nowhere": (lambda f: link_to_nowhere(f.brain), "brain", "is not here"),
}
NPY = {
    "a pickle that runs code": (lambda f: unpickled_by_nobody(f.scan), "scan", "cannot be read"),
    "words": (lambda f: f.edit_scan(lambda a: a.astype(str)), "scan", "real numbers"),
    "half a file": (lambda f: f.scan.write_bytes(f.scan.read_bytes()[:999]), "scan", "cannot be read"),
    "an archive": (lambda f: np.savez(f.scan.open("wb"), a=np.zeros(3)), "scan", "archive"),
    "a slice": (lambda f: f.edit_scan(lambda a: a[0, 0]), "scan", "has shape"),
    "two channels": (lambda f: f.edit_scan(lambda a: np.concatenate([a, a])), "scan", "has 2 channels"),
    "a table without numbers": (
        lambda f: f.table.write_text(f"scan,spacing_mm\n{f.scan.name},wide\n"),
        "table",
        "three numbers",
    ),
}
FILES = [(".nii.gz", name) for name in NIFTI] + [(".npy", name) for name in NPY]


@pytest.mark.parametrize(("ext", "what"), FILES, ids=[f"{what} ({ext})" for ext, what in FILES])
def test_broken_file_is_refused_at_every_door(cohort, networks, tmp_path, capsys, ext, what):
    breaks, culprit, complaint = (NPY if ext == ".npy" else NIFTI)[what]
    files = Inputs(cohort, tmp_path, ext)
    breaks(files)
    before, named = files_below(tmp_path), str(getattr(files, culprit))
    said = commands(files, networks, capsys)
    said["path"] = refusal_of(segment, files.scan, *networks.loaded, brain=files.brain)
    for door, why in said.items():
        assert why and named in why and complaint in why and ";" in why, (door, why)
    scan, brain = image_of(files.scan), image_of(files.brain)
    why = refusal_of(segment, scan, *networks.loaded, brain=brain)
    is_image = not isinstance({"scan": scan, "brain": brain}.get(culprit, named), str | Path)
    assert why and complaint in why and (why.startswith(f"{culprit} ") if is_image else named in why), why
    assert files_below(tmp_path) == before


def test_brain_beside_a_scan_that_is_not_on_its_grid_is_not_returned_as_its_brain(cohort, tmp_path):
    files = Inputs(cohort, tmp_path)
    files.change(files.brain, lambda a: a[1:])
    for scan in (files.scan, nib.load(files.scan)):
        assert f"{files.brain} has shape" in refusal_of(find_brain, scan)


MASKS = {
    "colours": (lambda a: np.zeros(a.shape, COLOURS), "real numbers"),
    "labels": (put(99, 7), "not binary"),
    "probabilities": (lambda a: 0.7 * a, "not binary"),
    "NaN": (lambda a: put(99, np.nan)(a.astype(float)), "not binary"),
    "another shape": (lambda a: a[1:], "has shape"),
    "two channels": (lambda a: np.stack([a, a], -1), "has 2 channels"),
}


@pytest.mark.parametrize("what", MASKS)
def test_broken_lesion_mask_is_refused_by_the_script_and_by_scores(cohort, networks, tmp_path, capsys, what):
    change, complaint = MASKS[what]
    files = Inputs(cohort, tmp_path)
    sound = nib.load(shutil.copy(files.mask, tmp_path / "sound.nii.gz"))
    files.change(files.mask, change)
    given = ["--scans", files.scan, "--masks", files.mask, "--brains_dir", files.brain]
    given += ["--ckpt_path", networks.checkpoints[1], "--scores_dir", tmp_path / "scores"]
    paths = message_of(test_strokeformer, capsys, *given), refusal_of(scores, sound, files.mask)
    for why in paths:
        assert str(files.mask) in why and complaint in why, why
    image = nib.load(files.mask)
    array = np.asarray(image.dataobj)
    for why in (
        refusal_of(scores, sound, image),
        refusal_of(lesions, sound, image),
        refusal_of(scores, sound, array, affine=AFFINE),
    ):
        assert why.startswith("truth ") and complaint in why, why


# --- what is no file -----------------------------------------------------------------------------------

PLACE = "affine is no (4, 4) matrix"
# What Python may give in the place of a scan: keywords of `segment` given sound voxels, and words of the complaint.
GIVEN = {
    "None": (lambda a: {"scan": None}, "scan is of type NoneType; give a file, a nibabel image, or an array"),
    "a list": (lambda a: {"scan": a.tolist(), "affine": AFFINE}, "scan is of type list;"),
    "a surface": (lambda a: {"scan": nib.GiftiImage()}, "scan is of type GiftiImage;"),
    "words": (lambda a: {"scan": a.astype(str), "affine": AFFINE}, "scan holds values of type"),
    "objects": (lambda a: {"scan": a.astype(object), "affine": AFFINE}, "scan holds values of type object"),
    "complex numbers under a header of real ones": (
        lambda a: {"scan": nib.Nifti1Image(a.astype(complex), AFFINE, nib.Nifti1Image(a, AFFINE).header)},
        "scan holds values of type complex",
    ),
    "an array without affine": (lambda a: {"scan": a}, "scan is an array; give its affine too"),
    "an affine without array": (
        lambda a: {"scan": nib.Nifti1Image(a, AFFINE), "affine": AFFINE},
        "affine is of arrays, and none is given",
    ),
    "an affine of 3 x 3": (lambda a: {"scan": a, "affine": np.eye(3)}, PLACE),
    "an affine of words": (lambda a: {"scan": a, "affine": "RAS"}, PLACE),
    "a ragged affine": (lambda a: {"scan": a, "affine": [[1, 2], [3]]}, PLACE),
    "an affine of NaN": (lambda a: {"scan": a, "affine": AFFINE * np.nan}, PLACE),
    "a transposed affine": (lambda a: {"scan": a, "affine": (AFFINE + np.eye(4, k=3)).T}, PLACE),
    "a flat affine": (lambda a: {"scan": a, "affine": np.diag([8, 8, 0, 1])}, PLACE),
    "a brain of another type": (lambda a: {"scan": nib.Nifti1Image(a, AFFINE), "brain": 3}, "brain is of type int"),
    "a brain of another shape": (lambda a: {"scan": a, "brain": a[1:] > 0, "affine": AFFINE}, "brain has shape"),
    "a path that is none": (lambda a: {"scan": "x" * 9999}, "scan cannot be read"),
    "the name of a mask": (lambda a: {"scan": "no_mask.nii"}, "scan no_mask.nii does not exist"),
}


@pytest.mark.parametrize("what", GIVEN)
def test_what_is_no_volume_is_refused_by_its_keyword(cohort, networks, what):
    make, complaint = GIVEN[what]
    scan = np.load(sorted((cohort / "Scans").iterdir())[1])[0].astype(np.float32)
    rpn, model = networks.loaded
    why = refusal_of(segment, rpn=rpn, model=model, **make(scan))
    assert why.startswith(complaint) and ";" in why, why


def test_every_function_names_what_it_refuses_by_its_own_keyword(networks):
    sound = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4))
    refusals = {
        "scan": [refusal_of(find_brain, None), refusal_of(propose, None, *networks.loaded)],
        "prediction": [refusal_of(scores, None, sound), refusal_of(scores, np.ones(3), sound, affine=np.eye(4))],
        "truth": [refusal_of(scores, sound, None), refusal_of(lesions, sound, [1])],
        "mask": [refusal_of(lesions, None), refusal_of(lesions, nib.Nifti1Image(7 * np.ones((4, 4, 4)), np.eye(4)))],
        "path": [refusal_of(read_image, None), refusal_of(read_image, sound)],
    }
    for keyword, lines in refusals.items():
        assert all(line.startswith(f"{keyword} ") for line in lines), lines


# What Python may give in the place of a number: the commands refuse it before they begin.
NUMBERS = {
    "overlap": -0.5,
    "batch_size": -1,
    "subvolume_depth": 0,
    "scan_dim": (1, 24, 25),
    "score_threshold": 20,
    "lesion_threshold": 30,
    "smallest_lesion_cm3": -1,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_number_that_the_command_line_refuses_is_refused_from_python(cohort, networks, tmp_path, capsys, name):
    files, value = Inputs(cohort, tmp_path), NUMBERS[name]
    rpn, seg = networks.checkpoints
    given = ["--scans", files.scan, "--rpn_ckpt_path", rpn, "--ckpt_path", seg, f"--{name}", *np.atleast_1d(value)]
    assert f"--{name}" in message_of(test_strokeformer, capsys, *given)
    if name == "score_threshold":
        why = refusal_of(load_rpn, rpn, **{name: value})
    elif name in ("lesion_threshold", "smallest_lesion_cm3"):
        why = refusal_of(load_strokeformer, seg, **{name: value})
    else:
        why = refusal_of(segment, files.scan, *networks.loaded, brain=files.brain, **{name: value})
    assert why.startswith(name) and ";" in why, why


# --- surroundings --------------------------------------------------------------------------------------


def test_folder_that_takes_no_files_is_refused_by_both_commands(cohort, networks, tmp_path, capsys):
    files = Inputs(cohort, tmp_path)
    files.root = Path("/dev/null")
    for why in commands(files, networks, capsys).values():
        assert "/dev/null/" in why and "cannot be written" in why


NO_NETWORK = {
    "text": lambda path: path.write_text("see attachment"),
    "an empty file": Path.touch,
    "a folder": Path.mkdir,
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("what", NO_NETWORK)
def test_what_is_no_network_is_refused_at_every_door(cohort, networks, tmp_path, capsys, what):
    files = Inputs(cohort, tmp_path / "data")
    path = tmp_path / "best.ckpt"
    NO_NETWORK[what](path)
    broken = SimpleNamespace(checkpoints=(networks.checkpoints[0], path), model=networks.model and path)
    said = [*commands(files, broken, capsys).values(), refusal_of(load_rpn, path), refusal_of(load_strokeformer, path)]
    for why in said:
        assert why and str(path) in why and ";" in why, why
    assert "path names no checkpoint" in refusal_of(load_rpn, None) and refusal_of(load_strokeformer, [])


def test_exchanged_networks_are_refused_at_every_door(cohort, networks, tmp_path, capsys):
    files = Inputs(cohort, tmp_path / "data")
    model = networks.model and shutil.copytree(networks.model, tmp_path / "model")
    if model:
        (model / "stage2.onnx").rename(model / "stage1_boxes.onnx")
        shutil.copy(networks.model / "stage1_boxes.onnx", model / "stage2.onnx")
    broken = SimpleNamespace(checkpoints=networks.checkpoints[::-1], model=model)
    said = commands(files, broken, capsys)
    assert "is a checkpoint of RPN, not of StrokeFormer" in said.pop("script")
    assert all("is not the network of its model.json" in why for why in said.values())
    rpn, seg = networks.checkpoints
    assert "is a checkpoint of StrokeFormer, not of RPN" in refusal_of(load_rpn, seg)
    assert "is a checkpoint of RPN, not of StrokeFormer" in refusal_of(load_strokeformer, rpn)
    assert "in this order; exchange them" in refusal_of(segment, files.scan, *networks.loaded[::-1])
