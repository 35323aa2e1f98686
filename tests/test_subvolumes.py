"""Training windows of stage 2: their size, place, region mask and reproducibility."""

import numpy as np
import pytest

from data.cohort import Case
from data.datamodules import SegmentationDataModule
from data.grid import Grid
from data.subvolumes import RegionDataset
from data.volumes import write_volume
from utils.errors import UserError
from utils.regions.region import Region

GRID = Grid((1, 16, 20, 24))


@pytest.fixture
def case(tmp_path):
    """A scan whose voxels tell their place, with a lesion of 2 x 2 x 2 at (8, 10, 12); brain all over."""
    scan = np.arange(16 * 20 * 24, dtype=np.float32).reshape(1, 16, 20, 24)
    mask = np.zeros(scan.shape, np.uint8)
    mask[0, 8:10, 10:12, 12:14] = 1
    case = Case("1", None, *(tmp_path / f"sub-1_{name}.npy" for name in ("T1w", "mask", "brain_mask")))
    write_volume(case.scan, scan)
    write_volume(case.mask, mask)
    write_volume(case.brain, np.ones_like(mask))
    return case


def dataset(case, regions, tmp_path, **kwargs):
    return RegionDataset([case], {case.name: regions}, GRID, (8, 8, 8), tmp_path / "cache", **kwargs)


def test_validation_window_is_the_region_itself(case, tmp_path):
    item = dataset(case, [Region(4, 12, 8, 6, 16, 14)], tmp_path)[0, 0]
    assert item["image"].shape == item["mask"].shape == item["region"].shape == (1, 8, 8, 8)
    assert item["region"].all() and item["mask"].sum() == 8 and item["has_lesion"] == 1
    assert item["mask"][0, 4:6, 4:6, 4:6].all()


def test_only_the_brain_of_a_region_counts_and_a_lesion_outside_is_none(case, tmp_path):
    brain = np.ones((1, 16, 20, 24), np.uint8)
    brain[:, 8:] = 0  # the lesion begins there
    write_volume(case.brain, brain)
    regions = {case.name: [Region(0, 16, 8, 6, 16, 14)]}
    item = RegionDataset([case], regions, GRID, (16, 8, 8), tmp_path / "cache")[0, 0]
    assert item["region"][0, :8].all() and not item["region"][0, 8:].any()
    assert item["has_lesion"] == 0 and item["mask"].sum() == 8


def test_window_without_lesion_says_so(case, tmp_path):
    assert dataset(case, [Region(0, 8, 0, 0, 8, 8)], tmp_path)[0, 0]["has_lesion"] == 0


def test_training_windows_move_and_mark_what_lies_outside_the_region(case, tmp_path):
    windows = dataset(case, [Region(4, 12, 8, 6, 16, 14)], tmp_path, train=True)
    items = [windows[epoch, 0] for epoch in range(30)]
    assert len({item["image"].tobytes() for item in items}) > 5
    outside = [(item["region"] == 0).sum() for item in items]
    assert min(outside) >= 0 and max(outside) > 0
    assert all((item["region"] == 0).mean() < 0.4 for item in items)  # at most one voxel a side


def test_windows_depend_on_seed_epoch_and_index_alone(case, tmp_path):
    def read(order, seed):
        windows = dataset(case, [Region(0, 16, 0, 0, 24, 20)], tmp_path, train=True, seed=seed, transforms=["noise"])
        items = {key: windows[key]["image"].tobytes() for key in order}
        return [items[key] for key in sorted(items)]

    keys = [(epoch, index) for epoch in range(2) for index in range(4)]
    assert read(keys, 0) == read(keys[::-1], 0) != read(keys, 1)


def test_large_region_gives_as_many_windows_as_it_takes_to_see_it(case, tmp_path):
    assert len(dataset(case, [Region(0, 16, 0, 0, 24, 20)], tmp_path)) == 2 * 3 * 3


def test_window_of_a_volume_smaller_than_the_roi_is_padded_outside_all_regions(case, tmp_path):
    small = RegionDataset([case], None, GRID, (32, 24, 24), tmp_path / "cache")
    item = small[0, 0]
    assert item["image"].shape == (1, 32, 24, 24)
    assert item["region"].sum() == 16 * 20 * 24 and item["region"][0, :16, :20].all()


def test_without_any_region_training_is_refused_with_advice(case, tmp_path):
    with pytest.raises(UserError, match="no region was proposed"):
        SegmentationDataModule([case], [case], {case.name: []}, GRID, (8, 8, 8), tmp_path / "cache")


def test_batches_are_the_same_for_any_number_of_workers(case, tmp_path):
    def batches(num_workers):
        regions = {case.name: [Region(0, 16, 0, 0, 24, 20)]}
        data = SegmentationDataModule(
            [case], [case], regions, GRID, (8, 8, 8), tmp_path / "cache", 4, num_workers, ["flip", "contrast"]
        )
        return [batch["image"].numpy().tobytes() for batch in data.train_dataloader()]

    assert batches(0) == batches(2)
