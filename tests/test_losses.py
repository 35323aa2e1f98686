"""The losses in which every lesion counts the same, by hand on a row of eight voxels."""

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from models.segmentation.losses import build_loss, nearest_lesions, number_lesions
from models.segmentation.settings import LOSS_CONFIG
from utils.errors import UserError

# A small lesion and one of two voxels; the voxels 0 to 2 are nearer to the first, 3 to 7 to the second.
ROW = torch.tensor([1, 0, 0, 0, 0, 1, 1, 0]).reshape(1, 1, 1, 1, 8)
UNSURE = torch.zeros(1, 2, 1, 1, 8)  # logits: lesion probability 0.5 everywhere, cross-entropy log 2
LN2 = math.log(2)


def lesion_term(name, logits, labels, **weights):
    """What the lesions add to the loss of the batch."""
    whole = build_loss("DiceCELoss", LOSS_CONFIG)(logits, labels)
    return (build_loss(name, {**LOSS_CONFIG, **weights})(logits, labels) - whole).item()


def test_lesions_are_numbered_through_the_batch_and_touch_by_corners():
    labels = torch.zeros(3, 1, 2, 3, 3, dtype=torch.int64)
    labels[0, 0, 0, 0, 0] = labels[0, 0, 1, 1, 1] = 1  # one, by a corner
    labels[2, 0, 0, 0, 0], labels[2, 0, 1, 2, 2] = 1, 2  # two, of whatever class
    lesions, windows = number_lesions(labels)
    assert windows.tolist() == [0, 2, 2]
    assert lesions[0, 0, 0, 0] == lesions[0, 1, 1, 1] == 1 and not lesions[1].any()
    assert lesions[2, 0, 0, 0] == 2 and lesions[2, 1, 2, 2] == 3


def test_each_voxel_belongs_to_its_nearest_lesion():
    lesions, _ = number_lesions(torch.cat([ROW, torch.zeros_like(ROW)]))
    nearest = nearest_lesions(lesions)
    assert nearest[0].flatten().tolist() == [1, 1, 1, 2, 2, 2, 2, 2] and not nearest[1].any()


def test_cc_dice_ce_is_the_mean_over_the_surroundings_of_lesions():
    # Dice: 2 * 0.5 / (1.5 + 1) in three voxels, 2 * 1 / (2.5 + 2) in five.
    expected = ((1 - 1 / 2.5) + (1 - 2 / 4.5)) / 2 + LN2
    assert lesion_term("CCDiceCELoss", UNSURE, ROW) == pytest.approx(expected, abs=1e-4)
    assert lesion_term("CCDiceCELoss", UNSURE, ROW, lesion_weight=0.5) == pytest.approx(expected / 2, abs=1e-4)


def test_cross_entropy_is_that_of_the_lesions_own_voxels():
    """Certain and wrong in the first lesion, certain and right elsewhere: only the first lesion's part suffers."""
    logits = torch.where(
        ROW > 0, torch.tensor([-9.0, 9]).reshape(1, 2, 1, 1, 1), torch.tensor([9.0, -9])[:, None, None, None]
    )
    logits[..., 0] = -logits[..., 0]
    wrong = 18.0 / 3 + 1  # cross-entropy of one voxel of three, and a Dice of 0
    assert lesion_term("CCDiceCELoss", logits, ROW) == pytest.approx(wrong / 2, abs=1e-3)


def test_instance_loss_compares_a_lesion_with_what_touches_it_and_counts_centres():
    # Nothing is predicted for sure: Dice 2 * 0.5 / (0.5 + 1) and 2 * 1 / (1 + 2), and no centre is found.
    assert lesion_term("ICILoss", UNSURE, ROW) == pytest.approx(1 / 3 + 1, abs=1e-4)
    assert lesion_term("ICILoss", UNSURE, ROW, lesion_weight=0, centre_weight=2) == pytest.approx(2, abs=1e-4)
    # Voxels 1 and 3 to 6: the second prediction touches the second lesion and has two voxels too many; the first is
    # false. Its cube lies about voxel 1, 0 to 4; the other about 4.5, which is rounded to even: 1 to 7.
    sure = torch.tensor([0, 1, 0, 1, 1, 1, 1, 0]) * 40.0 - 20
    logits = torch.stack([-sure, sure]).reshape(1, 2, 1, 1, 8)
    lesions = (1 + (1 - 2 * 2 / (4 + 2))) / 2
    true, predicted = 8, 8  # the cubes of lesions: 0 to 3 about voxel 0, 3 to 7 about 5.5; all voxels both times
    assert lesion_term("ICILoss", logits, ROW, centre_weight=0) == pytest.approx(lesions, abs=1e-4)
    centres = 1 - 2 * 8 / (true + predicted)
    assert lesion_term("ICILoss", logits, ROW, lesion_weight=0) == pytest.approx(centres, abs=1e-4)


def test_what_lies_on_another_lesion_is_no_error_of_this_one():
    row = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0]).reshape(1, 1, 1, 1, 8)
    sure = torch.tensor([0, 1, 1, 1, 0, 0, 0, 0]) * 40.0 - 20  # one prediction over both
    logits = torch.stack([-sure, sure]).reshape(1, 2, 1, 1, 8)
    assert lesion_term("ICILoss", logits, row, centre_weight=0) == pytest.approx(1 - 2 * 1 / (2 + 1), abs=1e-4)


def test_false_and_missed_centres_cost_the_same_whatever_their_size():
    labels = torch.zeros(1, 1, 32, 32, 32, dtype=torch.int64)
    labels[0, 0, 6, 6, 6] = labels[0, 0, 16, 16, 16] = 1
    labels[0, 0, 22:28, 22:28, 22:28] = 1

    def term(seen):
        return lesion_term("ICILoss", torch.cat([1 - seen, seen], 1) * 40.0 - 20, labels, lesion_weight=0)

    without_small, without_large, with_false = (labels.clone() for _ in range(3))
    without_small[0, 0, 16, 16, 16], without_large[0, 0, 22:28, 22:28, 22:28], with_false[0, 0, 6, 6, 26] = 0, 0, 1
    assert term(labels) == pytest.approx(0, abs=1e-4)
    assert term(without_small) == pytest.approx(1 - 4 / 5, abs=1e-3) == term(without_large)
    assert term(with_false) == pytest.approx(1 - 6 / 7, abs=1e-3)


def test_false_lesion_in_a_window_without_any_is_unlearned_through_its_centre():
    labels = torch.zeros(2, 1, 8, 8, 8, dtype=torch.int64)
    labels[0, 0, 2, 2, 2] = 1
    logits = torch.zeros(2, 2, 8, 8, 8)
    logits[:, 1] = -5
    logits[0, 1, 2, 2, 2] = logits[1, 1, 5, 5, 5] = 1
    logits.requires_grad_()
    without_batch = {**LOSS_CONFIG, "lambda_dice": 0, "lambda_ce": 0}
    build_loss("ICILoss", {**without_batch, "lesion_weight": 0})(logits, labels).backward()
    assert logits.grad[0, 1, 2, 2, 2] < -0.01 and logits.grad[1, 1, 5, 5, 5] > 0.01
    assert torch.count_nonzero(logits.grad) == 4  # of both classes


@pytest.mark.parametrize("name", ["CCDiceCELoss", "ICILoss"])
def test_missed_small_lesion_costs_as_much_as_a_missed_large_one(name):
    """In MONAI's Dice it hardly counts."""
    labels = torch.zeros(1, 1, 16, 16, 16, dtype=torch.int64)
    labels[0, 0, 2, 2, 2] = 1
    labels[0, 0, 8:14, 8:14, 8:14] = 1

    def missing(place):
        seen = labels.clone()
        seen[place] = 0
        return torch.cat([1 - seen, seen], 1) * 20.0 - 10

    small, large = (slice(None), 0, 2, 2, 2), (slice(None), 0, slice(8, 14), slice(8, 14), slice(8, 14))
    dice = [DiceCELoss(**LOSS_CONFIG, lambda_ce=0)(missing(place), labels).item() for place in (small, large)]
    ours = [lesion_term(name, missing(place), labels) for place in (small, large)]
    assert dice[0] < 0.01 and dice[1] > 0.98
    assert ours[0] > 0.45 and ours[1] > 0.45


def test_batch_without_lesion_has_its_own_loss_alone_and_all_voxels_learn():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    none = torch.zeros(2, 1, 4, 4, 4, dtype=torch.int64)
    assert lesion_term("CCDiceCELoss", logits, none) == 0
    labels = none.clone()
    labels[0, 0, 1, 1, 1], labels[0, 0, 3, 3, 3] = 1, 2
    build_loss("CCDiceCELoss", LOSS_CONFIG)(logits, labels).backward()
    assert torch.isfinite(logits.grad).all() and (logits.grad != 0).all()


def test_cc_dice_ce_agrees_with_a_slow_reference():
    """A pass over the window for each lesion, in place of sums."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy((rng.random((3, 1, 6, 7, 8)) < 0.02).astype(np.int64))
    logits = torch.from_numpy(rng.normal(size=(3, 2, 6, 7, 8)))
    lesions, windows = number_lesions(labels)
    nearest, terms = nearest_lesions(lesions), []
    for number, window in enumerate(windows.tolist(), start=1):
        part = nearest[window] == number
        own, seen = (lesions[window] == number)[part], logits[window].softmax(0)[1][part]
        errors = torch.where(own, -seen.log(), -(1 - seen).log())
        terms.append(1 - 2 * (seen * own).sum() / (seen.sum() + own.sum()) + errors.mean())
    assert len(terms) > 3
    expected = torch.stack(terms).mean().item()
    assert lesion_term("CCDiceCELoss", logits, labels) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["CCDiceCELoss", "ICILoss"])
def test_lesion_losses_refuse_what_they_cannot_do(name):
    with pytest.raises(UserError, match=f"--seg_loss_cfg does not fit {name}: it needs softmax"):
        build_loss(name, {"sigmoid": True})
    with pytest.raises(UserError, match=f"--seg_loss_cfg does not fit {name}"):
        build_loss(name, {"no_such_argument": 1})
