"""The pipeline of both stages, with a segmenter and regions that are drawn by hand."""

from dataclasses import dataclass, field, replace

import numpy as np

from data.files.nifti import affine_of
from data.files.space import Space
from models.pipeline import BATCH_SIZE, TwoStage
from models.segmentation.settings import SlidingWindow
from tests.drawn import SHAPE, mask_of, prepared
from utils.regions.region import Region, region_mask
from utils.scores.masks import Decision

REGION = Region(0, 2, 0, 0, 5, 2)
NEAR, FAR = (1, 1, 1), (2, 3, 4)  # inside REGION and outside


@dataclass
class FakeSegmenter:
    """Gives voxels one lesion probability inside the regions; notes how it was called."""

    lesion: np.ndarray
    decision: Decision = Decision()
    probability: float = 0.6
    calls: list = field(default_factory=list)

    def segment(self, prepared, regions, sliding, batch_size):
        self.calls.append((prepared.name, sliding, batch_size))
        inside = True if regions is None else region_mask(regions, self.lesion.shape)
        lesion = np.where(self.lesion & inside, self.probability, 0).astype(np.float32)
        return np.stack([1 - lesion, lesion])


def scan(own: Space | None = None):
    drawn = prepared("a.npy", np.ones((1, *SHAPE), np.float16), np.ones(SHAPE, bool))
    return drawn if own is None else replace(drawn, own=own)


def two_voxels() -> FakeSegmenter:
    return FakeSegmenter(mask_of(NEAR, FAR))


def test_prediction_holds_the_regions_of_the_source_and_the_probabilities_inside():
    sources = []
    pipeline = TwoStage(two_voxels(), lambda scan: sources.append(scan.name) or [REGION])
    prediction = pipeline.predict(scan())
    assert sources == ["a.npy"] and prediction.regions == [REGION]
    np.testing.assert_allclose(prediction.probabilities[1], 0.6 * mask_of(NEAR), rtol=1e-6)
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1)
    np.testing.assert_array_equal(prediction.lesions, mask_of(NEAR))


def test_without_a_source_of_regions_the_whole_volume_is_segmented():
    prediction = TwoStage(two_voxels()).predict(scan())
    assert prediction.regions is None
    np.testing.assert_array_equal(prediction.lesions, mask_of(NEAR, FAR))


def test_scan_without_any_region_has_no_lesion():
    prediction = TwoStage(two_voxels(), lambda scan: []).predict(scan())
    assert prediction.regions == [] and not prediction.lesions.any()


def test_windows_are_laid_as_the_pipeline_says():
    segmenter, sliding = two_voxels(), SlidingWindow(overlap=0.5)
    TwoStage(segmenter, sliding=sliding, batch_size=3).predict(scan())
    TwoStage(segmenter).predict(scan())
    assert segmenter.calls == [("a.npy", sliding, 3), ("a.npy", SlidingWindow(), BATCH_SIZE)]


def test_the_segmenters_decision_tells_what_is_lesion():
    cautious = FakeSegmenter(mask_of(NEAR), Decision(threshold=0.7))
    assert not TwoStage(cautious).predict(scan()).lesions.any()
    large_only = FakeSegmenter(mask_of(NEAR), Decision(smallest_cm3=0.002))  # a voxel has 0.001
    assert not TwoStage(large_only).predict(scan()).lesions.any()
    assert TwoStage(FakeSegmenter(mask_of(NEAR, (1, 1, 2)), large_only.decision)).predict(scan()).lesions.sum() == 2


def test_lesion_without_a_detection_of_stage_1_nearby_is_removed():
    """Detections grow by a voxel: the second lesion begins two voxels beyond."""
    region = Region(0, 3, 0, 0, 5, 4, (Region(0, 1, 0, 0, 1, 1),))
    prediction = TwoStage(two_voxels(), lambda scan: [region]).predict(scan())
    assert prediction.probabilities[1][FAR] > 0.5
    np.testing.assert_array_equal(prediction.lesions, mask_of(NEAR))


def test_lesions_lie_on_the_scans_own_grid_and_come_back_for_pictures():
    """The scan has two slices for each of the networks' ones; what is interpolated is 0.75 of the probability."""
    d, h, w = SHAPE
    affine = affine_of((0.5, 1, 1))
    affine[2, 3] = -0.25
    own = Space((2 * d, h, w), affine)
    sure = FakeSegmenter(mask_of(NEAR, FAR), probability=0.9)
    prediction = TwoStage(sure, lambda scan: [REGION]).predict(scan(own))
    assert prediction.own_probabilities.shape == (2, *own.shape) and prediction.classes.dtype == np.uint8
    assert prediction.lesion_probability.shape == prediction.lesions.shape == own.shape
    assert np.argwhere(prediction.lesions).tolist() == [[2, 1, 1], [3, 1, 1]]
    np.testing.assert_array_equal(prediction.lesions_on_grid, mask_of(NEAR))


def test_classes_tell_kinds_of_lesion_apart():
    class Kinds(FakeSegmenter):
        def segment(self, prepared, regions, sliding, batch_size):
            kinds = np.zeros((3, *SHAPE), np.float32)
            kinds[1][NEAR], kinds[2][FAR] = 0.9, 0.8
            kinds[0] = 1 - kinds.sum(0)
            return kinds

    prediction = TwoStage(Kinds(mask_of())).predict(scan())
    assert (prediction.classes[NEAR], prediction.classes[FAR], prediction.classes.sum()) == (1, 2, 3)
    np.testing.assert_allclose(prediction.lesion_probability[FAR], 0.8, rtol=1e-6)
