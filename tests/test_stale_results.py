"""Files that change between two runs: nothing that was made of the old ones is given for the new."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from data.files.volumes import read_volume, write_volume
from data.scans.brain import with_brains
from data.scans.cohort import pair_cases
from data.scans.fingerprints import changed_since, fingerprint
from data.scans.grid import Grid
from data.scans.prepared import cached_scan
from tests.running import GRID, QUICK, ROI, run_script

# --- fingerprints ----------------------------------------------------------------------------------------


def test_digest_follows_the_content_and_not_the_place_or_time(tmp_path):
    (tmp_path / "a").write_text("lesion")
    (tmp_path / "b").write_text("lesion")
    (tmp_path / "c").write_text("Lesion")
    digests = fingerprint({name: [tmp_path / name] for name in "abc"}, tmp_path / "store.json")
    assert digests["a"] == digests["b"] != digests["c"]


def test_file_rewritten_with_its_old_size_and_time_is_read_again(tmp_path):
    path, store = tmp_path / "mask.npy", tmp_path / "store.json"
    path.write_text("old lesion")
    before, status = fingerprint({"a": [path]}, store), path.stat()
    path.write_text("new lesion")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed_since(store) == ["a"]
    assert fingerprint({"a": [path]}, store) != before and changed_since(store) == []


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("lesion")
    before = fingerprint({"a": [tmp_path / "a"]}, tmp_path / "store.json")
    monkeypatch.setattr("data.scans.fingerprints.content_digest", lambda files: pytest.fail("read again"))
    assert fingerprint({"a": [tmp_path / "a"]}, tmp_path / "store.json") == before


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": {"stamp": "x"}}'])
def test_broken_store_costs_time_and_nothing_else(tmp_path, content):
    (tmp_path / "a").write_text("lesion")
    (tmp_path / "store.json").write_text(content)
    found = fingerprint({"a": [tmp_path / "a"]}, tmp_path / "store.json")
    assert found == fingerprint({"a": [tmp_path / "a"]}, tmp_path / "other.json")


# --- cached scans ----------------------------------------------------------------------------------------


def test_cached_scan_is_made_anew_for_other_code_and_for_another_voxel_size(cohort, tmp_path, monkeypatch):
    for part in ("Scans", "Masks", "Brains"):
        (tmp_path / part).mkdir()
        shutil.copy(sorted((cohort / part).iterdir())[0], tmp_path / part)
    shutil.copy(cohort / "cohort.csv", tmp_path)
    (case,), grid = with_brains(pair_cases([tmp_path / "Scans"], [tmp_path / "Masks"]), None), Grid((1, 24, 25, 29))
    assert cached_scan(case, grid, tmp_path / "cache").spacing_mm == (8, 8, 8)
    table = pd.read_csv(tmp_path / "cohort.csv")
    table.assign(spacing_mm="7 8 9").to_csv(tmp_path / "cohort.csv", index=False)
    assert cached_scan(case, grid, tmp_path / "cache").spacing_mm == (9, 7, 8)
    monkeypatch.setattr("data.scans.prepared.prepare_scan", lambda *_: pytest.fail("prepared again"))
    cached_scan(case, grid, tmp_path / "cache")
    monkeypatch.setattr("data.scans.prepared.PREPARATION_VERSION", "of another checkout")
    with pytest.raises(pytest.fail.Exception, match="prepared again"):
        cached_scan(case, grid, tmp_path / "cache")


# --- prepared scans --------------------------------------------------------------------------------------


def test_prepared_scans_follow_a_redrawn_mask_a_mirrored_scan_and_a_removed_subject(cohort, tmp_path):
    names = [path.stem for path in sorted((cohort / "Scans").iterdir())[:4]]
    for part, folder in (("Scans", "ATLAS"), ("Masks", "ATLAS"), ("Brains", "brains")):
        for path in sorted((cohort / part).iterdir())[:4]:
            write_volume(tmp_path / f"{folder}/{path.stem}.nii.gz", read_volume(path).array, np.diag([8.0, 8, 8, 1]))
    masks = {path.name.split("_")[0]: path for path in (tmp_path / "ATLAS").glob("*mask.nii.gz")}
    command = ["-m", "data.prepare", "--dataset", "atlas", "--root", tmp_path / "ATLAS", "--out_dir", tmp_path / "Base"]
    command += ["--spacing", 8, 8, 8, *GRID, "--brains_dir", tmp_path / "brains"]
    run_script(*command, cwd=tmp_path)
    same = tmp_path / "Base/Scans" / f"{names[3]}.npy"
    untouched, before = same.stat().st_mtime_ns, {p.name: np.load(p) for p in (tmp_path / "Base/Scans").iterdir()}

    mask = masks[names[0].split("_")[0]]
    redrawn = read_volume(mask).array.copy()
    voxel = tuple(np.argwhere(redrawn == redrawn.max())[0])
    redrawn[:] = 0
    redrawn[voxel] = 1
    write_volume(mask, redrawn, np.diag([8.0, 8, 8, 1]))
    scan = tmp_path / "ATLAS" / f"{names[1]}.nii.gz"
    write_volume(scan, read_volume(scan).array[:, :, ::-1], np.diag([8.0, 8, 8, 1]))
    for path in (tmp_path / "ATLAS").glob(f"{names[2].split('_')[0]}_*"):
        path.unlink()

    said = run_script(*command, cwd=tmp_path).out
    table = pd.read_csv(tmp_path / "Base/cohort.csv").set_index("scan")
    assert ": 1 scan; the prepared files were removed" in said
    assert sorted(table.index) == sorted(f"{name}.npy" for name in (names[0], names[1], names[3]))
    assert sorted(p.stem for p in (tmp_path / "Base/Scans").iterdir()) == sorted([names[0], names[1], names[3]])
    assert table.lesion_voxels[f"{names[0]}.npy"] == 1
    mirrored = np.load(tmp_path / "Base/Scans" / f"{names[1]}.npy")
    assert not np.array_equal(mirrored, before[f"{names[1]}.npy"])
    assert same.stat().st_mtime_ns == untouched  # what has not changed is not done again


# --- slices ----------------------------------------------------------------------------------------------


def test_slices_of_a_removed_subject_go_and_those_of_a_redrawn_mask_are_refused(cohort, tmp_path):
    for part in ("Scans", "Masks", "Brains"):
        shutil.copytree(cohort / part, tmp_path / part)
    cut = ["-m", "data.slices", "--scans_dir", "Scans", "--masks_dir", "Masks", "--out_dir", "slices", *GRID]
    run_script(*cut, cwd=tmp_path)
    first, second = sorted((tmp_path / "Scans").iterdir())[:2]
    subject = first.name.split("_")[0]
    for path in [*(tmp_path / "Scans").glob(f"{subject}_*"), *(tmp_path / "Masks").glob(f"{subject}_*")]:
        path.unlink()
    run_script(*cut, cwd=tmp_path)
    left = [path.name for part in ("Scans", "Masks", "Brains") for path in (tmp_path / "slices" / part).iterdir()]
    assert left and not any(name.startswith(subject) for name in left)

    mask = next((tmp_path / "Masks").glob(f"{second.name.split('_')[0]}_*"))
    np.save(mask, np.load(mask)[:, ::-1].copy())
    train = ["train_rpn.py", "--train_scans", "slices/Scans", "--train_masks", "slices/Masks"]
    train += ["--val_scans", "slices/Scans", "--val_masks", "slices/Masks", "--model_prefix", "rpn"]
    error = run_script(*train, cwd=tmp_path, code=2).err
    assert f"{second.name} or its mask has changed since its slices were cut" in error
    np.save(mask, np.load(mask)[:, ::-1].copy())  # as it was: the content counts, not the time

    record = json.loads((tmp_path / "slices/run.json").read_text())
    (tmp_path / "slices/run.json").write_text(json.dumps({**record, "inputs": {"code": "of another checkout"}}))
    error = run_script(*train, cwd=tmp_path, code=2).err
    assert "were cut by another version" in error and "cut them anew" in error


def test_slices_are_not_cut_into_a_folder_with_others(cohort, tmp_path):
    (tmp_path / "mine/Scans").mkdir(parents=True)
    np.save(tmp_path / "mine/Scans/sub-1_slice-001.npy", np.zeros((1, 4, 4)))
    cut = ["-m", "data.slices", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", *GRID]
    error = run_script(*cut, "--out_dir", "mine", cwd=tmp_path, code=2).err
    assert "mine holds other slices" in error and (tmp_path / "mine/Scans/sub-1_slice-001.npy").exists()


# --- augmented scans ------------------------------------------------------------------------------------


def test_augmented_scans_are_made_anew_when_a_lesion_changes(cohort, tmp_path):
    for part in ("Scans", "Masks", "Brains"):
        (tmp_path / part).mkdir()
        for path in sorted((cohort / part).iterdir())[:3]:
            shutil.copy(path, tmp_path / part)
    command = ["-m", "augmentation", "--scans_dir", "Scans", "--masks_dir", "Masks", "--out_dir", "Augmented"]
    run_script(*command, cwd=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "Augmented/Masks").iterdir()}
    sources = json.loads((tmp_path / "Augmented/sources.json").read_text())
    for origin in json.loads((tmp_path / "Augmented/provenance.json").read_text()).values():
        assert set(origin["sources"]) == {origin["recipient_scan"], *(lesion["scan"] for lesion in origin["lesions"])}
        assert all(sources[name]["digest"] == digest for name, digest in origin["sources"].items())
    masks = sorted((tmp_path / "Masks").iterdir(), key=lambda path: np.load(path).sum())
    largest = np.load(masks[-1])
    largest[0, : int(np.argwhere(largest[0])[:, 0].mean())] = 0
    np.save(masks[-1], largest)
    run_script(*command, cwd=tmp_path)
    after = {path.name: path.read_bytes() for path in (tmp_path / "Augmented/Masks").iterdir()}
    name = next(name for name in after if name.startswith(masks[-1].name.split("_")[0]))
    own = np.load(tmp_path / "Augmented/Masks" / name)
    assert after != before and (own >= largest).all()


# --- checkpoints ----------------------------------------------------------------------------------------


def test_training_goes_on_from_the_best_checkpoint_where_the_last_is_cut_in_half(workspace):
    command = [
        *["train_rpn.py", "--train_scans", workspace.slices, "--train_masks", workspace.slice_masks],
        *["--val_scans", workspace.slices, "--val_masks", workspace.slice_masks, "--model_prefix", "cut"],
        *["--image_size", 32, "--batch_size", 16, *ROI, *QUICK],
    ]
    run_script(*command, "--max_epochs", 1, cwd=workspace.cwd)
    checkpoints = workspace.cwd / "RPN/cut/checkpoints"
    for name in ("last.ckpt", "best.ckpt"):
        whole = (checkpoints / name).read_bytes()
        (checkpoints / name).write_bytes(whole[: len(whole) // 2])
        if name == "last.ckpt":
            said = run_script(*command, "--max_epochs", 2, cwd=workspace.cwd).out
            assert "last.ckpt is broken: training goes on from" in said
            (checkpoints / name).write_bytes(whole[: len(whole) // 2])
    error = run_script(*command, "--max_epochs", 3, cwd=workspace.cwd, code=2).err
    assert "last.ckpt is broken and so is every other; remove" in error
