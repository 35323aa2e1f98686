"""Windows of stage 2: their size, place, region mask and reproducibility."""

import numpy as np
import pytest

from data.batches.datamodules import SegmentationDataModule
from data.batches.windows import RegionWindows, TrainingWindows, WindowCutter, starts_over
from data.files.volumes import write_volume
from data.scans.cohort import Case
from data.scans.grid import Grid
from utils.errors import UserError
from utils.regions.region import Region, region_mask

SHAPE = (16, 20, 24)
GRID = Grid((1, *SHAPE))
LESION = (slice(8, 10), slice(10, 12), slice(12, 14))
FAR = Region(0, 8, 0, 0, 8, 8)  # from the lesion


@pytest.fixture
def make_case(tmp_path):
    def make(subject="1", sick=True, brain=None):
        """A scan whose voxels tell their place, with a lesion of 2 x 2 x 2 where it is sick; brain all over."""
        scan = 1 + np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE)
        mask = np.zeros(scan.shape, np.uint8)
        mask[(0, *LESION)] = sick
        case = Case(subject, None, *(tmp_path / f"sub-{subject}_{name}.npy" for name in ("T1w", "mask", "brain_mask")))
        write_volume(case.scan, scan)
        write_volume(case.mask, mask)
        write_volume(case.brain, np.ones_like(mask) if brain is None else brain[None].astype(np.uint8))
        return case

    return make


@pytest.fixture
def cutter(tmp_path):
    return lambda roi_size=(8, 8, 8): WindowCutter(GRID, roi_size, tmp_path / "cache")


# --- validation ----------------------------------------------------------------------------------------


def test_validation_window_is_the_region_itself(make_case, cutter):
    case = make_case()
    item = RegionWindows([case], {case.name: [Region(4, 12, 8, 6, 16, 14)]}, cutter())[0]
    assert item["image"].shape == item["mask"].shape == item["region"].shape == (1, 8, 8, 8)
    assert item["region"].all() and item["mask"].sum() == 8 and item["has_lesion"] == 1
    assert item["mask"][0, 4:6, 4:6, 4:6].all()


def test_only_the_brain_of_a_region_counts_and_a_lesion_outside_is_none(make_case, cutter):
    case = make_case(brain=np.arange(16)[:, None, None] < 8 * np.ones(SHAPE))  # the lesion begins where it ends
    item = RegionWindows([case], {case.name: [Region(0, 16, 8, 6, 16, 14)]}, cutter((16, 8, 8)))[0]
    assert item["region"][0, :8].all() and not item["region"][0, 8:].any()
    assert item["has_lesion"] == 0 and item["mask"].sum() == 8


def test_window_without_lesion_says_so(make_case, cutter):
    case = make_case()
    assert RegionWindows([case], {case.name: [FAR]}, cutter())[0]["has_lesion"] == 0


@pytest.mark.parametrize(
    "region", [Region(0, 16, 0, 0, 24, 20), Region(2, 13, 1, 3, 22, 19), Region(3, 5, 9, 9, 10, 17)]
)
def test_windows_over_a_region_see_all_of_it_and_stay_in_the_volume(region):
    starts = starts_over(region, (8, 8, 8), SHAPE)
    seen = region_mask([Region(d, d + 8, x, y, x + 8, y + 8) for d, y, x in starts], SHAPE)
    assert seen[region.slices].all()
    assert all(s >= 0 and s + 8 <= size for start in starts for s, size in zip(start, SHAPE, strict=True))


def test_a_large_region_gives_as_many_windows_as_it_takes_to_see_it(make_case, cutter):
    case = make_case()
    windows = RegionWindows([case], {case.name: [Region(0, 16, 0, 0, 24, 20)]}, cutter())
    assert len(windows) == 2 * 3 * 3
    assert len({item["image"].tobytes() for item in map(windows.__getitem__, range(len(windows)))}) == len(windows)


def test_window_of_a_volume_smaller_than_the_roi_is_padded_outside_all_regions(make_case, cutter):
    case = make_case()
    item = RegionWindows([case], {case.name: [Region(0, 16, 0, 0, 24, 20)]}, cutter((32, 24, 24)))[0]
    assert item["image"].shape == (1, 32, 24, 24)
    assert item["region"].sum() == 16 * 20 * 24 and item["region"][0, :16, :20].all()


# --- training ------------------------------------------------------------------------------------------


def training(cases, cutter, regions=None, **kwargs):
    return TrainingWindows(cases, regions, cutter, 40, **kwargs)


def test_half_of_the_training_windows_of_each_batch_lie_about_lesions_of_sick_scans(make_case, cutter):
    windows = training([make_case("1"), *(make_case(str(n), sick=False) for n in range(2, 8))], cutter())
    lesions = np.array([windows[0, index]["has_lesion"] for index in range(40)])
    assert (lesions.reshape(10, 4)[:, [0, 2]] == 1).all()  # by chance a window meets the lesion in one of fifty
    assert lesions.reshape(10, 4)[:, [1, 3]].mean() < 0.3


def test_a_lesion_is_not_always_in_the_middle_of_its_window(make_case, cutter):
    windows = training([make_case()], cutter())
    places = {tuple(np.argwhere(windows[epoch, 0]["mask"][0])[0]) for epoch in range(20)}
    assert len(places) > 10


def test_every_fourth_window_lies_about_a_proposed_region_wherever_the_lesion_is(make_case, cutter):
    case = make_case()
    windows = training([case], cutter(), {case.name: [FAR]})
    everywhere = np.lib.stride_tricks.sliding_window_view(windows.cutter.prepared(case).scan[0], (8, 8, 8))
    for epoch in range(20):
        ((*start,),) = np.argwhere((everywhere == windows[epoch, 3]["image"][0]).all((3, 4, 5)))
        assert (np.array(start) <= 5).all()  # its middle is at most two voxels beyond the region, which ends at 8


def test_all_brain_of_a_training_window_counts_and_nothing_else(make_case, cutter):
    brain = np.zeros(SHAPE, bool)
    brain[:, :, :13] = True
    windows = training([make_case(brain=brain)], cutter())
    regions = np.stack([windows[0, index]["region"] for index in range(12)])
    images = np.stack([windows[0, index]["image"] for index in range(12)])
    assert regions.any((1, 2, 3, 4)).all() and not regions.all()
    assert (images[regions == 0] == 0).all()


def test_scans_without_lesions_and_without_regions_still_give_windows(make_case, cutter):
    windows = training([make_case(sick=False)], cutter())
    assert all(windows[0, index]["region"].any() for index in range(8))


def test_windows_depend_on_seed_epoch_and_index_alone(make_case, cutter):
    case = make_case()

    def read(order, seed):
        windows = training([case], cutter(), seed=seed, transforms=["noise"])
        items = {key: windows[key]["image"].tobytes() for key in order}
        return [items[key] for key in sorted(items)]

    keys = [(epoch, index) for epoch in range(2) for index in range(4)]
    assert read(keys, 0) == read(keys[::-1], 0) != read(keys, 1)


# --- loaders -------------------------------------------------------------------------------------------


def test_an_epoch_has_as_many_windows_as_it_takes_to_see_the_training_regions_once(make_case, tmp_path):
    case = make_case()
    regions = {case.name: [FAR, Region(0, 16, 0, 0, 24, 20)]}
    data = SegmentationDataModule([case], [case], regions, GRID, (8, 8, 8), tmp_path / "cache")
    assert len(data.train) == len(data.val) == 1 + 2 * 3 * 3
    whole = SegmentationDataModule([case], [case], None, GRID, (8, 8, 8), tmp_path / "cache")
    assert len(whole.train) == len(whole.val) == 2 * 3 * 3


def test_without_any_region_training_is_refused_with_advice(make_case, tmp_path):
    case = make_case()
    with pytest.raises(UserError, match="no region was proposed"):
        SegmentationDataModule([case], [case], {case.name: []}, GRID, (8, 8, 8), tmp_path / "cache")


def test_batches_are_the_same_for_any_number_of_workers(make_case, tmp_path):
    case = make_case()

    def batches(num_workers):
        regions = {case.name: [Region(0, 16, 0, 0, 24, 20)]}
        data = SegmentationDataModule(
            [case], [case], regions, GRID, (8, 8, 8), tmp_path / "cache", 4, num_workers, ["flip", "contrast"]
        )
        return [batch["image"].numpy().tobytes() for batch in data.train_dataloader()]

    assert batches(0) == batches(2)
