"""2D decomposition: true indices, boxes, the table of slices, and volumes put back together."""

import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.batches.cutting import boxes_of, cut_cohort, lesion_boxes
from data.batches.datamodules import EpochSampler, RPNDataModule, SliceDataset, balanced_indices
from data.batches.slices import read_slice_table
from data.batches.sources import ScanSlices, SliceFiles, stacked_scans
from data.files.volumes import write_volume
from data.scans.cohort import pair_cases
from data.scans.grid import Grid
from data.scans.open import cohort_of
from data.scans.prepared import prepare_scan
from data.settings import Loading
from models.rpn.module import RPN
from tests.drawn import trained_on
from utils.errors import UserError

GRID = Grid((1, 12, 20, 24))


@pytest.fixture
def cohort(tmp_path, no_skulls):
    """Two scans of 12 slices whose brain fills slices 2 to 9; the second has a lesion in slices 4 and 5."""
    for subject in ("01", "02"):
        scan = np.zeros((1, 12, 20, 24), np.float32)
        scan[:, 2:10, 3:17, 4:20] = 60 + np.arange(16)
        mask = np.zeros(scan.shape, np.uint8)
        if subject == "02":
            mask[0, 4:6, 8:10, 10:13] = 1
        write_volume(tmp_path / f"Scans/sub-{subject}_ses-1_T1w.npy", scan)
        write_volume(tmp_path / f"Masks/sub-{subject}_ses-1_label-L_mask.npy", mask)
    return pair_cases([tmp_path / "Scans"], [tmp_path / "Masks"])


def cut(cohort, out_dir):
    return cut_cohort(cohort, GRID, partial(prepare_scan, grid=GRID, brains=out_dir / "found"), out_dir)


def test_slices_with_brain_keep_their_true_index_and_air_is_skipped(cohort, tmp_path):
    table = cut(cohort, tmp_path / "2d")
    for _, rows in table.groupby("volume"):
        assert rows.slice.tolist() == list(range(2, 10)) and set(rows.depth) == {12}
    sick = table[table.lesion_voxels > 0]
    assert sick.slice.tolist() == [4, 5] and set(sick.lesion_voxels) == {6} and set(sick.subject) == {"02"}
    assert sick.scan.iloc[0].endswith("Scans/sub-02_ses-1_T1w_slice-004.npy")


def test_slices_stack_back_into_the_volume_they_came_from(cohort, tmp_path):
    stacked = stacked_scans(cut(cohort, tmp_path / "2d"))
    for case, again in zip(cohort, stacked, strict=True):
        prepared = prepare_scan(case, GRID, tmp_path / "2d/found")
        assert again.name == case.name
        for part in ("brain", "mask"):
            np.testing.assert_array_equal(getattr(again, part), getattr(prepared, part))
        np.testing.assert_array_equal(again.scan, prepared.scan)


def test_folder_without_table_is_measured_to_the_same_rows(cohort, tmp_path):
    listed = cut(cohort, tmp_path / "2d")
    (tmp_path / "2d/slices.csv").unlink()
    measured = read_slice_table(tmp_path / "2d/Scans", tmp_path / "2d/Masks")
    pd.testing.assert_frame_equal(
        measured.drop(columns=["depth", "brain_voxels"]), listed.drop(columns=["depth", "brain_voxels"])
    )
    assert set(measured.depth) == {12}  # the brain masks tell
    shutil.rmtree(tmp_path / "2d/Brains")
    measured = read_slice_table(tmp_path / "2d/Scans", tmp_path / "2d/Masks")
    assert set(measured.depth) == {10}  # without them, too, the volume ends at its last slice
    assert [scan.brain.shape for scan in stacked_scans(measured)] == [(10, 20, 24)] * 2


def files_of(out_dir) -> dict[str, int]:
    """Time of writing of each slice, brain and record."""
    files = [path for folder in ("Scans", "Masks", "Brains", "cache") for path in (out_dir / folder).iterdir()]
    return {path.name: path.stat().st_mtime_ns for path in files}


def test_slices_of_scans_that_did_not_change_stay_and_no_others(cohort, tmp_path):
    out_dir = tmp_path / "2d"
    first, before = cut(cohort, out_dir), files_of(out_dir)
    pd.testing.assert_frame_equal(cut(cohort, out_dir), first)
    assert files_of(out_dir) == before
    mask = np.load(cohort[1].mask)
    np.save(cohort[1].mask, np.roll(mask, 1, axis=3))  # the lesion a slice higher
    again, after = cut(cohort, out_dir), files_of(out_dir)
    assert again[again.lesion_voxels > 0].slice.tolist() == [5, 6]
    assert all(after[name] == before[name] for name in before if name.startswith("sub-01"))
    assert not any(after.get(name) == before[name] for name in before if name.startswith("sub-02"))
    next((out_dir / "Masks").glob("sub-01_*slice-005.npy")).unlink()
    pd.testing.assert_frame_equal(cut(cohort, out_dir), again)
    assert set(cut(cohort[1:], out_dir).subject) == {"02"}
    assert all(name.startswith("sub-02") for name in files_of(out_dir))


def test_table_tells_the_boxes_of_all_lesions(cohort, tmp_path):
    mask = np.load(cohort[1].mask)
    mask[0, 4:6, 15:18, 4] = 1
    np.save(cohort[1].mask, mask)
    table = cut(cohort, tmp_path / "2d")
    boxes = [lesion_boxes(np.load(path)[0] > 0) for path in table["mask"]]
    np.testing.assert_array_equal(boxes_of(table), np.concatenate(boxes))
    assert boxes_of(table).dtype == np.float32 and len(boxes_of(table)) == 3
    read = read_slice_table(tmp_path / "2d/Scans", tmp_path / "2d/Masks")
    pd.testing.assert_frame_equal(read, table)
    (tmp_path / "2d/slices.csv").unlink()
    measured = read_slice_table(tmp_path / "2d/Scans", tmp_path / "2d/Masks")
    assert measured.boxes.tolist() == table.boxes.tolist()


def test_slice_without_mask_is_refused(cohort, tmp_path):
    cut(cohort, tmp_path / "2d")
    next((tmp_path / "2d/Masks").iterdir()).unlink()
    with pytest.raises(UserError, match="has no mask"):
        read_slice_table(tmp_path / "2d/Scans", tmp_path / "2d/Masks")


def test_slice_without_an_index_in_its_name_is_refused(tmp_path):
    for folder, name in (("Scans", "sub-1_T1w.npy"), ("Masks", "sub-1_mask.npy")):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / name, np.zeros((1, 4, 4)))
    with pytest.raises(UserError, match="has no slice index"):
        read_slice_table(tmp_path / "Scans", tmp_path / "Masks")


# --- boxes ---------------------------------------------------------------------------------------------


def test_each_lesion_of_a_slice_has_its_half_open_box():
    mask = np.zeros((8, 9), bool)
    mask[1:3, 2:6] = True
    mask[3, 6] = True  # touches by a corner: the same lesion
    mask[6, 0] = True
    assert lesion_boxes(mask).tolist() == [[2, 1, 7, 4], [0, 6, 1, 7]]


def test_healthy_slice_has_no_boxes():
    boxes = lesion_boxes(np.zeros((4, 4), bool))
    assert boxes.shape == (0, 4) and boxes.dtype == np.float32


@given(arrays(bool, (7, 9)))
def test_boxes_cover_all_lesion_and_have_an_area(mask):
    covered = np.zeros_like(mask)
    for x0, y0, x1, y1 in lesion_boxes(mask).astype(int):
        assert x1 > x0 and y1 > y0
        covered[y0:y1, x0:x1] = True
    assert not (mask & ~covered).any()


def test_training_and_inference_see_the_same_slices(cohort, tmp_path):
    table, model, seen = cut(cohort, tmp_path / "2d"), RPN(image_size=64), []
    model.detect = lambda images, _: [seen.append(image) or {} for image in images]
    for case in cohort:
        model.detect_volume(prepare_scan(case, GRID, tmp_path / "2d/found"))
    dataset = SliceDataset(SliceFiles(table))
    assert len(seen) == len(dataset) == 16
    for index, image in enumerate(seen):
        assert image.dtype == torch.float32
        np.testing.assert_array_equal(image, dataset[0, index]["image"])


def test_slices_of_prepared_scans_are_those_that_are_cut_into_files(cohort, tmp_path):
    files = SliceFiles(cut(cohort, tmp_path / "2d"))
    opened = replace(cohort_of(cohort, grid=GRID), brains=tmp_path / "2d/found", cache_dir=tmp_path / "kept")
    scans = ScanSlices(cohort[::-1], opened)
    pd.testing.assert_frame_equal(scans.table, files.table[scans.table.columns])
    pd.testing.assert_frame_equal(ScanSlices(cohort, opened).table, scans.table)  # of what is listed already
    names = ["flip", "affine", "noise"]
    batches = [trained_on(RPNDataModule(each, each, Loading(batch_size=2), names)) for each in (files, scans)]
    for (images, targets), (others, other_targets) in zip(*batches, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(images, others, strict=True))
        assert all(
            torch.equal(*pair) for pair in zip(*(boxes_in(each) for each in (targets, other_targets)), strict=True)
        )
    for index in range(len(files.table)):
        one, other = (SliceDataset(each)[0, index] for each in (files, scans))
        assert all(np.array_equal(one[name], other[name]) for name in one)
    for one, other in zip(files.scans(0), scans.scans(0), strict=True):
        assert one.name == other.name
        for part in ("scan", "brain", "mask"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


def boxes_in(targets):
    return [target["boxes"] for target in targets]


# --- sampling ------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=50).filter(any), st.integers(0, 5))
def test_epoch_holds_all_sick_slices_and_as_many_healthy_ones(flags, seed):
    sick = np.array(flags)
    chosen = balanced_indices(sick, np.random.default_rng(seed))
    assert len(set(chosen)) == len(chosen)
    assert sick[chosen].sum() == sick.sum()
    assert (~sick[chosen]).sum() == min(sick.sum(), (~sick).sum())


def test_workers_neither_repeat_nor_drop_nor_change_a_slice(cohort, tmp_path):
    slices = SliceFiles(cut(cohort, tmp_path / "2d"))
    batches = {}
    for num_workers in (0, 2):
        data = RPNDataModule(slices, slices, Loading(batch_size=2, num_workers=num_workers), ["flip", "noise"], seed=3)
        batches[num_workers] = trained_on(data)
    assert len(batches[0]) == len(batches[2])
    for (images, targets), (others, other_targets) in zip(batches[0], batches[2], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(images, others, strict=True))
        assert all(torch.equal(*pair) for pair in zip(boxes_in(targets), boxes_in(other_targets), strict=True))
    sick = (slices.table.lesion_voxels > 0).sum()
    assert sum(len(images) for images, _ in batches[2]) == sick + min(sick, len(slices.table) - sick)


def test_boxes_lie_around_the_lesions_as_they_are_after_augmentation():
    mask = np.zeros((20, 24), bool)
    mask[3:9, 14:20] = True
    read = SimpleNamespace(table=pd.DataFrame({"lesion_voxels": [36] * 12}), read=lambda _: (np.float32([mask]), mask))
    ((images, targets),) = trained_on(RPNDataModule(read, read, Loading(batch_size=12), ["flip", "affine"]))
    seen = [lesion_boxes(image[0].numpy() > 0.5) for image in images]
    assert all(np.abs(box - own.numpy()).max() <= 1 for box, own in zip(seen, boxes_in(targets), strict=True))
    assert len({tuple(box[0]) for box in seen}) > 3


def test_resumed_run_begins_with_the_batches_of_its_epoch_though_workers_load_them_early(cohort, tmp_path):
    slices = SliceFiles(cut(cohort, tmp_path / "2d"))
    data = RPNDataModule(slices, slices, Loading(batch_size=2), ["noise"], seed=3)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(4)
    expected = list(loader)
    data.first_epoch = 4
    for batch, other in zip(expected, data.train_dataloader(), strict=True):
        assert torch.equal(batch["image"], other["image"]) and np.array_equal(batch["key"], other["key"])


def test_epochs_differ_and_repeat_with_the_seed():
    def epochs(seed):
        sampler = EpochSampler(lambda rng: rng.permutation(20), seed)
        orders = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
        return orders

    first, second = epochs(3)
    assert [i for _, i in first] != [i for _, i in second]
    assert {e for e, _ in second} == {1}
    assert epochs(3) == [first, second] != epochs(4)
