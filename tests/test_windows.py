"""Windows of stage 2: their size, place, region mask and reproducibility."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batches.datamodules import SegmentationDataModule
from data.batches.windows import RegionWindows, TrainingWindows, starts_over, windows_over
from data.files.volumes import write_volume
from data.scans.cohort import Case
from data.scans.grid import Grid
from data.scans.open import Cohort
from data.settings import Loading
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import SlidingWindow
from tests.drawn import trained_on
from utils.errors import UserError
from utils.regions.region import Region, region_mask

SHAPE = (16, 20, 24)
GRID = Grid((1, *SHAPE))
WINDOW = (8, 8, 8)
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
def cohort(tmp_path):
    """Where cases are prepared and kept; the windows name their cases themselves."""
    return Cohort((), GRID, brains=tmp_path / "cache/brains", cache_dir=tmp_path / "cache")


# --- validation ----------------------------------------------------------------------------------------


def test_validation_window_is_the_region_itself(make_case, cohort):
    case = make_case()
    item = RegionWindows([case], {case.name: [Region(4, 12, 8, 6, 16, 14)]}, cohort, WINDOW)[0]
    assert item["image"].shape == item["mask"].shape == item["region"].shape == (1, 8, 8, 8)
    assert item["region"].all() and item["mask"].sum() == 8
    assert item["mask"][0, 4:6, 4:6, 4:6].all()


def test_only_the_brain_of_a_region_counts_and_a_lesion_outside_is_none(make_case, cohort):
    case = make_case(brain=np.arange(16)[:, None, None] < 8 * np.ones(SHAPE))  # the lesion begins where it ends
    item = RegionWindows([case], {case.name: [Region(0, 16, 8, 6, 16, 14)]}, cohort, (16, 8, 8))[0]
    assert item["region"][0, :8].all() and not item["region"][0, 8:].any()
    assert item["mask"].sum() == 8 and not (item["mask"] * item["region"]).any()


@pytest.mark.parametrize(
    "region", [Region(0, 16, 0, 0, 24, 20), Region(2, 13, 1, 3, 22, 19), Region(3, 5, 9, 9, 10, 17)]
)
def test_windows_over_a_region_see_all_of_it_and_stay_in_the_volume(region):
    starts = starts_over(region, (8, 8, 8), SHAPE)
    seen = region_mask([Region(d, d + 8, x, y, x + 8, y + 8) for d, y, x in starts], SHAPE)
    assert seen[region.slices].all()
    assert all(s >= 0 and s + 8 <= size for start in starts for s, size in zip(start, SHAPE, strict=True))


def test_a_large_region_gives_as_many_windows_as_it_takes_to_see_it(make_case, cohort):
    case = make_case()
    windows = RegionWindows([case], {case.name: [Region(0, 16, 0, 0, 24, 20)]}, cohort, WINDOW)
    assert len(windows) == 2 * 3 * 3
    assert len({item["image"].tobytes() for item in map(windows.__getitem__, range(len(windows)))}) == len(windows)


def test_window_of_a_volume_smaller_than_the_roi_is_padded_outside_all_regions(make_case, cohort):
    case = make_case()
    item = RegionWindows([case], {case.name: [Region(0, 16, 0, 0, 24, 20)]}, cohort, (32, 24, 24))[0]
    assert item["image"].shape == (1, 32, 24, 24)
    assert item["region"].sum() == 16 * 20 * 24 and item["region"][0, :16, :20].all()


def test_region_within_the_window_of_another_needs_none_of_its_own():
    small, large, far = Region(2, 4, 2, 2, 4, 4), Region(0, 8, 0, 0, 8, 8), Region(8, 10, 14, 14, 16, 16)
    assert windows_over([small, large], WINDOW, SHAPE) == [(0, 0, 0)]
    assert windows_over([small, far, large], WINDOW, SHAPE) == [(0, 0, 0), *starts_over(far, WINDOW, SHAPE)]


# --- training ------------------------------------------------------------------------------------------


def training(cases, cohort, regions=None, **kwargs):
    return TrainingWindows(cases, regions, cohort, WINDOW, 40, **kwargs)


def test_half_of_the_training_windows_of_each_batch_lie_about_lesions_of_sick_scans(make_case, cohort):
    windows = training([make_case("1"), *(make_case(str(n), sick=False) for n in range(2, 8))], cohort)
    lesions = np.array([windows[0, index]["mask"].any() for index in range(40)])
    assert (lesions.reshape(10, 4)[:, [0, 2]] == 1).all()  # by chance a window meets the lesion in one of fifty
    assert lesions.reshape(10, 4)[:, [1, 3]].mean() < 0.3


def test_one_window_lies_about_any_lesion_and_one_about_any_voxel_of_lesion(make_case, cohort):
    mask = np.zeros(SHAPE, bool)
    mask[:6, :6, :6] = mask[14, 14, 14] = True
    case = make_case()
    write_volume(case.mask, mask[None].astype(np.uint8))
    windows = TrainingWindows([case], None, cohort, (4, 4, 4), 160)
    small = [[windows[0, index]["mask"].sum() == 1 for index in range(first, 160, 4)] for first in (0, 2)]
    assert 12 <= np.count_nonzero(small[0]) <= 28 and np.count_nonzero(small[1]) <= 3  # of 40; one voxel of 217


def test_a_lesion_is_not_always_in_the_middle_of_its_window(make_case, cohort):
    windows = training([make_case()], cohort)
    places = {tuple(np.argwhere(windows[epoch, 0]["mask"][0])[0]) for epoch in range(20)}
    assert len(places) > 10


def test_every_fourth_window_lies_about_a_proposed_region_wherever_the_lesion_is(make_case, cohort):
    case = make_case()
    windows = training([case], cohort, {case.name: [FAR]})
    everywhere = np.lib.stride_tricks.sliding_window_view(cohort.prepare(case).scan[0], (8, 8, 8))
    for epoch in range(20):
        ((*start,),) = np.argwhere((everywhere == windows[epoch, 3]["image"][0]).all((3, 4, 5)))
        assert (np.array(start) <= 5).all()  # its middle is at most two voxels beyond the region, which ends at 8


def test_all_brain_of_a_training_window_counts_and_nothing_else(make_case, cohort):
    brain = np.zeros(SHAPE, bool)
    brain[:, :, :13] = True
    windows = training([make_case(brain=brain)], cohort)
    regions = np.stack([windows[0, index]["region"] for index in range(12)])
    images = np.stack([windows[0, index]["image"] for index in range(12)])
    assert regions.any((1, 2, 3, 4)).all() and not regions.all()
    assert (images[regions == 0] == 0).all()


def test_scans_without_lesions_and_without_regions_still_give_windows(make_case, cohort):
    windows = training([make_case(sick=False)], cohort)
    assert all(windows[0, index]["region"].any() for index in range(8))


def test_windows_depend_on_seed_epoch_and_index_alone(make_case, cohort):
    case = make_case()

    def read(order, seed):
        windows = training([case], cohort, seed=seed)
        items = {key: windows[key]["image"].tobytes() for key in order}
        return [items[key] for key in sorted(items)]

    keys = [(epoch, index) for epoch in range(2) for index in range(4)]
    assert read(keys, 0) == read(keys[::-1], 0) != read(keys, 1)


# --- loaders -------------------------------------------------------------------------------------------


def test_an_epoch_has_as_many_windows_as_it_takes_to_see_the_training_regions_once(make_case, cohort):
    case = make_case()
    regions = {case.name: [FAR, Region(0, 16, 0, 0, 24, 20)]}
    data = SegmentationDataModule([case], [case], regions, cohort, WINDOW)
    assert len(data.train) == len(data.val) == 2 * 3 * 3  # the first lies in a window of the second
    whole = SegmentationDataModule([case], [case], None, cohort, WINDOW)
    assert len(whole.train) == len(whole.val) == 2 * 3 * 3


def test_network_sees_the_same_window_in_training_and_in_inference(make_case, cohort):
    case, region = make_case(), Region(0, 16, 8, 4, 24, 20)
    windows = RegionWindows([case], {case.name: [region]}, cohort, (16, 16, 16))
    model, seen = StrokeFormer(roi_size=(16, 16, 16)), []
    model.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    # It is all brain, so the window is the region.
    probabilities = model.segment(cohort.prepare(case), [region], SlidingWindow(overlap=0.0))
    np.testing.assert_array_equal(seen[0][0].numpy(), windows[0]["image"])
    assert probabilities.shape == (2, *SHAPE) and (probabilities[1][region.slices] > 0).all()


def test_without_any_region_training_is_refused_with_advice(make_case, cohort):
    case = make_case()
    with pytest.raises(UserError, match="no region was proposed"):
        SegmentationDataModule([case], [case], {case.name: []}, cohort, WINDOW)


def test_batches_are_the_same_for_any_number_of_workers(make_case, cohort):
    case = make_case()

    def batches(num_workers):
        regions = {case.name: [Region(0, 16, 0, 0, 24, 20)]}
        loading = Loading(batch_size=4, num_workers=num_workers)
        data = SegmentationDataModule([case], [case], regions, cohort, WINDOW, loading, ["flip", "contrast"])
        return [batch["image"].numpy().tobytes() for batch in trained_on(data)]

    assert batches(0) == batches(2)


def test_a_batch_says_which_of_its_augmented_windows_hold_a_lesion_that_counts(make_case, cohort):
    case = make_case()
    loading, sides = Loading(batch_size=40), ([case], [case], {case.name: [FAR]})
    data = SegmentationDataModule(*sides, cohort, WINDOW, loading, ["affine"])
    for batch in trained_on(data):
        assert batch["has_lesion"].tolist() == [float(each.any()) for each in batch["mask"] * batch["region"]]
    data.trainer = SimpleNamespace(training=False)
    (batch,) = data.val_dataloader()
    after = data.on_after_batch_transfer(dict(batch), 0)
    assert torch.equal(after["image"], batch["image"]) and after["has_lesion"].tolist() == [0.0]
