"""The RPN as a module: anchors, one-channel backbone, validation without trace, proposals, calibration."""

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from models.checkpoints import CHECKPOINT_VERSION, load_model
from models.rpn.detector import PROPOSALS, Anchors, Detector, adapt_first_conv, head_window
from models.rpn.module import RPN
from models.rpn.settings import ANCHOR_SIZES, ASPECT_RATIOS, SMALLEST_ON_LEVEL
from models.training.rpn import THRESHOLDS, calibration_summary, choose_threshold, coverage_curve, fit_anchors
from tests import drawn
from utils.errors import UserError
from utils.regions.region import Region


@pytest.fixture(scope="module")
def rpn():
    torch.manual_seed(0)
    return RPN(image_size=64).eval()


def prepared(depth=6, side=32, lesion=(slice(2, 4), slice(4, 10), slice(6, 14))):
    head = np.zeros((depth, side, side), bool)
    head[1 : depth - 1, 2:30, 2:30] = True
    mask = np.zeros(head.shape, bool)
    mask[lesion] = True
    return drawn.prepared("sub-1_T1w.npy", head[None].astype(np.float16), head, mask)


def detections(boxes):
    """Detections by slice index: {z: [(box, score), ...]}."""
    return {
        z: {
            "boxes": torch.tensor([b for b, _ in found], dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor([s for _, s in found], dtype=torch.float32),
        }
        for z, found in boxes.items()
    }


@pytest.mark.parametrize("name", ANCHOR_SIZES)
def test_each_data_set_has_its_anchors_one_size_a_level(name):
    generator = Detector(1, ANCHOR_SIZES[name], image_size=192).rpn.anchor_generator
    assert generator.sizes == tuple((size,) for size in ANCHOR_SIZES[name])
    assert set(generator.aspect_ratios) == {ASPECT_RATIOS}
    assert ANCHOR_SIZES["ATLAS"] == (5, 32, 54, 93)


@pytest.mark.parametrize("name", ANCHOR_SIZES)
def test_every_anchor_set_proposes_on_slices_of_any_shape(name):
    model = RPN(anchor_sizes=ANCHOR_SIZES[name], image_size=64)
    (found,) = model.detect([torch.rand(1, 40, 50)])
    assert found["boxes"].shape[1] == 4 and len(found["boxes"]) == len(found["scores"]) <= 10


def test_anchors_keep_their_share_of_the_slice_at_another_image_size():
    generator = Detector(1, ANCHOR_SIZES["ATLAS"], image_size=96).rpn.anchor_generator
    assert generator.sizes == ((2.5,), (16,), (27,), (46.5,))


def test_no_anchor_is_without_area_however_small_the_slice():
    for cell in Detector(1, ANCHOR_SIZES["ATLAS"], image_size=16).rpn.anchor_generator.cell_anchors:
        assert (cell[:, 2:] > cell[:, :2]).all()


def test_anchors_are_torchvisions_where_both_sides_divide_and_keep_their_strides_elsewhere():
    sizes = ((8,), (16,)), ((0.5, 1.0),) * 2
    images, maps = (
        ImageList(torch.zeros(2, 1, 64, 96), [(64, 96)] * 2),
        [torch.zeros(2, 1, 64 // s, 96 // s) for s in (4, 8)],
    )
    for ours, theirs in zip(Anchors(*sizes)(images, maps), AnchorGenerator(*sizes)(images, maps), strict=True):
        torch.testing.assert_close(ours, theirs)
    odd, maps = (
        ImageList(torch.zeros(1, 1, 37, 45), [(37, 45)]),
        [torch.zeros(1, 1, -(-37 // s), -(-45 // s)) for s in (4, 8)],
    )
    (anchors,) = Anchors(((8,), (16,)), ((1.0,),) * 2)(odd, maps)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[:120].max(0).values.tolist() == [44, 36] and centres[120:].max(0).values.tolist() == [40, 32]


def test_only_the_heads_of_a_batch_are_looked_at():
    images = [torch.zeros(2, 40, 60) for _ in range(2)]
    images[0][0, 10, 20], images[1][1, 12, 57] = 1, 0.1
    assert head_window(images) == (slice(8, 15), slice(18, 60))
    assert head_window([torch.zeros(1, 40, 60)]) == (slice(0, 40), slice(0, 60))


def test_a_head_elsewhere_in_the_slice_moves_its_boxes_as_far(rpn):
    head = 0.1 + torch.rand(1, 20, 30)
    left, right = torch.zeros(1, 32, 60), torch.zeros(1, 32, 60)
    left[:, 6:26, 4:34], right[:, 6:26, 24:54] = head, head
    (one,), (other,) = rpn.detect([left]), rpn.detect([right])
    assert len(one["boxes"])
    torch.testing.assert_close(one["boxes"] + torch.tensor([20.0, 0, 20, 0]), other["boxes"], atol=1e-3, rtol=1e-5)


def test_targets_are_learned_where_the_window_puts_them(monkeypatch):
    detector, seen = Detector(1, ANCHOR_SIZES["ATLAS"], image_size=64), {}

    def note(images, features, targets):
        seen.update(shape=images.tensors.shape, boxes=targets[0]["boxes"])
        raise StopIteration

    monkeypatch.setattr(detector.rpn, "forward", note)
    image = torch.zeros(1, 32, 40)  # twice as large inside
    image[:, 10:20, 15:30] = 1
    with pytest.raises(StopIteration):
        detector([image], [{"boxes": torch.tensor([[16.0, 12, 20, 15]]), "labels": torch.ones(1, dtype=torch.int64)}])
    assert seen["shape"] == (1, 1, 28, 38)  # rows 8 to 22 and columns 13 to 32
    assert seen["boxes"].tolist() == [[6, 8, 14, 14]]


def squares(*sides):
    return np.array([(0, 0, side, side) for side in sides], float)


def test_fitted_anchors_are_the_medians_of_four_shares_of_the_lesions():
    boxes = squares(*[20] * 8, *[40] * 8, *[60] * 8, *[90] * 8)
    assert fit_anchors(boxes, shorter_side=192, image_size=192) == (20, 40, 60, 90)
    assert fit_anchors(boxes / 2, shorter_side=96, image_size=192) == (20, 40, 60, 90)


def test_fitted_anchors_are_two_strides_of_their_level_or_more():
    assert fit_anchors(squares(1, 2, 3, 4), 192, 192) == SMALLEST_ON_LEVEL
    # At half the size a stride means twice as much of the head.
    assert fit_anchors(squares(1, 2, 3, 4), 192, 96) == tuple(2 * size for size in SMALLEST_ON_LEVEL)


def test_few_proposals_reach_the_box_head():
    assert Detector(1, ANCHOR_SIZES["ATLAS"], 192).rpn.post_nms_top_n() <= max(PROPOSALS.values()) <= 200


def test_grey_slice_answers_as_its_rgb_copy_did():
    conv, grey = resnet18().conv1, torch.rand(2, 1, 32, 32)
    adapted = adapt_first_conv(conv, 1)
    torch.testing.assert_close(adapted(grey), conv(grey.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)


def test_backbone_weights_are_loaded_from_a_file_and_refused_otherwise(tmp_path):
    body = resnet18()
    torch.save(body.state_dict(), tmp_path / "resnet18.pth")
    model = RPN(backbone_weights=str(tmp_path / "resnet18.pth"))
    torch.testing.assert_close(model.detector.backbone.body.layer1[0].conv1.weight, body.layer1[0].conv1.weight)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for name, complaint in (("absent.pth", "nothing is downloaded"), ("other.pth", "no state dict")):
        with pytest.raises(UserError, match=complaint):
            RPN(backbone_weights=str(tmp_path / name))


def test_checkpoint_that_was_trained_with_what_is_gone_is_refused(rpn, tmp_path):
    path = tmp_path / "best.ckpt"
    held = {
        "model": "RPN",
        "version": CHECKPOINT_VERSION,
        "hyper_parameters": {**rpn.hparams, "focal": True},
        "state_dict": rpn.state_dict(),
    }
    torch.save(held, path)
    with pytest.raises(
        UserError, match=f"^checkpoint {path} does not fit this version of RPN .*'focal'.*; train it anew$"
    ):
        load_model(RPN, path)


def test_validation_leaves_weights_statistics_and_random_stream_alone(rpn):
    images, box = [torch.rand(1, 32, 32) for _ in range(3)], torch.tensor([[4.0, 4, 12, 12]])
    targets = [{"boxes": box, "labels": torch.ones(1, dtype=torch.int64)} for _ in images]
    before, stream = {k: v.clone() for k, v in rpn.state_dict().items()}, torch.get_rng_state()
    first, again = rpn.validation_losses(images, targets), rpn.validation_losses(images, targets)
    assert first == again and all(torch.isfinite(v) for v in first.values())
    assert torch.equal(stream, torch.get_rng_state())
    for name, value in rpn.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not rpn.detector.training


def test_only_slices_with_brain_are_looked_at(rpn):
    assert list(rpn.detect_volume(prepared())) == [1, 2, 3, 4]


def test_batches_do_not_change_the_detections(rpn):
    slices = [torch.rand(1, 32, 32) for _ in range(5)]
    for one, other in zip(rpn.detect(slices, batch_size=1), rpn.detect(slices, batch_size=5), strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-2, rtol=1e-3)


def test_grouped_region_comes_from_detections_of_at_least_the_threshold(rpn, monkeypatch):
    monkeypatch.setitem(rpn.hparams, "consistency", "grouped")
    found = detections({2: [((4, 5, 8, 9), 0.5), ((0, 0, 30, 30), 0.49)], 3: [((4, 5, 8, 9), 0.9)]})
    assert rpn.propose(prepared(), found, (1, 1, 1), threshold=0.5) == [Region(1, 5, 4, 5, 8, 9)]
    assert rpn.propose(prepared(), found, (1, 1, 1), threshold=0.95) == []


def test_linked_region_comes_from_all_boxes_of_at_least_the_threshold(rpn):
    found = detections({2: [((4, 5, 8, 9), 0.7), ((20, 20, 24, 24), 0.6)], 3: [((4, 5, 8, 9), 0.8)]})
    roi_size = (2, 4, 4)
    assert rpn.propose(prepared(), found, roi_size, threshold=0.65) == [Region(2, 4, 4, 5, 8, 9)]
    assert len(rpn.propose(prepared(), found, roi_size, threshold=0.5)) == 2
    assert rpn.propose(prepared(), found, roi_size, threshold=0.9) == []
    kept = rpn.keep(found, 0.65)
    assert kept.in_slice(2).tolist() == [[4, 5, 8, 9]] and kept.in_slice(4).shape == (0, 4)


def test_volume_without_detections_proposes_nothing(rpn, monkeypatch):
    for rule in ("linked", "grouped"):
        monkeypatch.setitem(rpn.hparams, "consistency", rule)
        assert rpn.propose(prepared(), {}, (1, 1, 1)) == rpn.propose(prepared(), detections({2: []}), (1, 1, 1)) == []


def test_coverage_curve_counts_what_each_threshold_covers(rpn, monkeypatch):
    """One sure box on half of the lesion, one doubtful box on the whole of it."""
    found = detections({2: [((6, 4, 10, 10), 0.75), ((6, 4, 14, 10), 0.25)]})
    monkeypatch.setattr(rpn, "detect_volume", lambda scan: found)
    monkeypatch.setitem(rpn.hparams, "consistency", "grouped")
    curve = coverage_curve(rpn, [prepared()], (1, 1, 1))
    by_threshold = curve.set_index(pd.cut(curve.threshold, [0, 0.25, 0.75, 1])).lesion_coverage
    assert [set(by_threshold[interval]) for interval in by_threshold.index.categories] == [{1.0}, {0.5}, {0.0}]
    assert curve.proposed_fraction.iloc[0] == pytest.approx(4 * 6 * 8 / (4 * 28 * 28))


def curve_of(coverage, recall, fraction):
    columns = {"lesion_coverage": coverage, "lesion_recall": recall, "proposed_fraction": fraction}
    return pd.DataFrame({"threshold": [0.1, 0.5, 0.9], **columns})


@pytest.mark.parametrize(
    ("coverage", "recall", "fraction", "chosen"),
    [
        ([1.0, 0.99, 0.7], [1.0, 1.0, 0.5], [0.8, 0.3, 0.1], 0.5),  # the highest that reaches 0.98
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.25, 0.23, 0.15], 0.5),  # up to 0.6 times as much again as it takes
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.36, 0.34, 0.28], 0.5),  # but not beyond the budget
        ([1.0, 0.7, 0.5], [1.0, 0.7, 0.5], [0.6, 0.5, 0.4], 0.9),  # the budget comes before the target
        ([1.0, 1.0, 0.99], [1.0, 1.0, 0.5], [0.8, 0.3, 0.1], 0.5),  # small lesions count as much as large ones
        ([0.9, 0.8, 0.3], [0.9, 0.8, 0.3], [0.9, 0.2, 0.1], 0.5),  # none reaches it and 0.9 of the brain is too much
        ([0.8, 0.8, 0.8], [0.8, 0.8, 0.8], [0.3, 0.2, 0.1], 0.1),  # none reaches it: the lowest that is affordable
        ([0.9, 0.8, 0.3], [0.9, 0.8, 0.3], [0.9, 0.8, 0.7], 0.9),  # nothing is affordable
        ([np.nan] * 3, [np.nan] * 3, [0.5] * 3, 0.25),  # no lesion to calibrate on
    ],
)
def test_threshold_covers_enough_with_a_margin(coverage, recall, fraction, chosen):
    assert choose_threshold(curve_of(coverage, recall, fraction), default=0.25) == chosen


@pytest.mark.parametrize(
    ("coverage", "recall", "fraction", "told"),
    [
        (0.99, 0.98, 0.25, "Calibrated: 0.25 of the brain is proposed and holds 0.99 of the lesion voxels and 0.98 of"),
        (0.99, 0.80, 0.30, "0.98 is out of reach within 0.35: train longer"),
        (0.99, 0.98, 0.61, "validation scans; train longer to propose less"),
        (np.nan, np.nan, 0.2, "Not calibrated: no validation scan holds a lesion"),
    ],
)
def test_calibration_tells_what_it_reached(coverage, recall, fraction, told):
    curve = curve_of([1.0, coverage, 0.1], [1.0, recall, 0.1], [0.9, fraction, 0.1])
    if np.isnan(coverage):
        curve[["lesion_coverage", "lesion_recall"]] = np.nan
    assert told in calibration_summary(curve, 0.5)


def test_thresholds_cover_the_range_of_scores():
    assert THRESHOLDS[0] == pytest.approx(0.01) and THRESHOLDS[-1] >= 0.9 and (np.diff(THRESHOLDS) > 0).all()
