"""Segmentation losses: MONAI's and three that count lesions, by name; blind to voxels outside the proposed regions."""

import monai.losses
import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from utils.errors import UserError

CERTAIN = 20.0  # a logit gap whose cross-entropy (2e-9) and Dice gradient vanish in float32
SURE = 0.5  # the probability above which voxels are a predicted lesion
CENTRE = 7  # voxels along the edge of the cube that stands for a lesion's centre
SMOOTH = 1e-5  # of a Dice, as in MONAI: that of nothing found where nothing is is 1

# --- by name -------------------------------------------------------------------------------------------


def build_loss(name: str, config: dict) -> nn.Module:
    """A loss on (logits, labels) of `OWN` or of MONAI, e.g. ``build_loss("DiceCELoss", {"softmax": True})``."""
    kind = OWN.get(name) or getattr(monai.losses, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(
            f"--seg_loss {name} is no loss of monai.losses; try DiceCELoss, DiceFocalLoss, {' or '.join(OWN)}"
        )
    try:
        return kind(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"--seg_loss_cfg does not fit {name}: {error}") from None


def build_classification_loss(name: str) -> nn.Module:
    """A torch loss on (logits, labels) by name, e.g. ``BCEWithLogitsLoss``."""
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.modules.loss._Loss)):
        raise UserError(f"--cls_loss {name} is no loss of torch.nn; try BCEWithLogitsLoss")
    return kind()


# --- regions -------------------------------------------------------------------------------------------


def mask_outside(logits: torch.Tensor, labels: torch.Tensor, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make voxels outside the regions certain, correct background, which no loss can learn from.

    Args:
        logits: (B, K, D, H, W), class 0 is background.
        labels: (B, 1, D, H, W) class indices.
        region: (B, 1, D, H, W), nonzero inside.

    Returns:
        Logits and labels that equal the given ones inside the regions.
    """
    inside = region > 0
    background = torch.full_like(logits, -CERTAIN)
    background[:, 0] = CERTAIN
    return torch.where(inside, logits, background), torch.where(inside, labels, torch.zeros_like(labels))


# --- lesions that count the same, whatever their size --------------------------------------------------


class CCDiceCELoss(nn.Module):
    """DiceCE of the batch, and the mean over lesions of the DiceCE in each one's surroundings.

    The surroundings of a lesion are the voxels of its window that are nearer to it than to any other lesion (its
    Voronoi region), so a false positive counts against the lesion next to it. CC-DiceCE, Bouteille et al., 2025,
    arXiv 2511.17146, after the CC-Metrics of Jaus et al., 2024, arXiv 2410.18684.

    Args:
        lesion_weight: of the mean over lesions beside the loss of the batch.
        config: of MONAI's ``DiceCELoss`` for the batch, with softmax.
    """

    def __init__(self, lesion_weight: float = 1.0, **config) -> None:
        super().__init__()
        self.batch_loss, self.lesion_weight = _softmax_dice_ce(config), lesion_weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, D, H, W), class 0 background, and class indices (B, 1, D, H, W) to a scalar."""
        loss, (lesions, windows) = self.batch_loss(logits, labels), number_lesions(labels)
        if not len(windows):
            return loss
        found, errors = _lesion_maps(logits, labels)
        inside = (lesions > 0).to(found)
        maps = (found * inside, found, inside, errors, torch.ones_like(found))
        nearest = nearest_lesions(lesions)
        return loss + self.lesion_weight * _dice_ce(*(_sums(values, nearest, len(windows)) for values in maps)).mean()


class BlobLoss(nn.Module):
    """DiceCE of the batch, and the mean over lesions of the DiceCE of the window without its other lesions.

    Blob loss, Kofler et al., 2022, arXiv 2205.08209; the weights are theirs.

    Args:
        batch_weight, lesion_weight: of the two.
        config: of MONAI's ``DiceCELoss`` for the batch, with softmax.
    """

    def __init__(self, batch_weight: float = 2.0, lesion_weight: float = 1.0, **config) -> None:
        super().__init__()
        self.batch_loss, self.batch_weight, self.lesion_weight = _softmax_dice_ce(config), batch_weight, lesion_weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, D, H, W), class 0 background, and class indices (B, 1, D, H, W) to a scalar."""
        loss, (lesions, windows) = self.batch_weight * self.batch_loss(logits, labels), number_lesions(labels)
        if not len(windows):
            return loss
        found, errors = _lesion_maps(logits, labels)
        healthy, maps = lesions == 0, (found, errors, torch.ones_like(found))
        # A lesion's sums are its own and those of all healthy voxels of its window: no pass over the window for each.
        own = [_sums(values, lesions, len(windows)) for values in maps]
        around = [(values * healthy).sum((1, 2, 3))[windows] for values in maps]
        found_all, errors_all, voxels = (a + b for a, b in zip(own, around, strict=True))
        return loss + self.lesion_weight * _dice_ce(own[0], found_all, own[2], errors_all, voxels).mean()


class ICILoss(nn.Module):
    """DiceCE of the batch, the mean over lesions of the Dice of each, and the Dice of the centres of all.

    A lesion is compared with the predicted lesions that touch it, less what these have in common with other lesions.
    For the centres each lesion, true or predicted, is one cube of `CENTRE` voxels, so that a missed and a false one
    cost the same whatever their size; a predicted cube has the mean probability of its lesion. Instance-wise and
    centre-of-instance loss, Rachmadi et al., 2023, arXiv 2304.06229, which uses Dice alone for the batch.

    Args:
        lesion_weight, centre_weight: beside the loss of the batch.
        config: of MONAI's ``DiceCELoss`` for the batch, with softmax.
    """

    def __init__(self, lesion_weight: float = 1.0, centre_weight: float = 1.0, **config) -> None:
        super().__init__()
        self.batch_loss, self.lesion_weight, self.centre_weight = _softmax_dice_ce(config), lesion_weight, centre_weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, D, H, W), class 0 background, and class indices (B, 1, D, H, W) to a scalar."""
        (lesions, windows), (found, _) = number_lesions(labels), _lesion_maps(logits, labels)
        predicted, predicted_windows = number_lesions((found > SURE)[:, None])
        loss, counts = self.batch_loss(logits, labels), (len(windows), len(predicted_windows))
        if len(windows):
            loss = loss + self.lesion_weight * _dices_of_lesions(found, lesions, predicted, *counts).mean()
        return loss + self.centre_weight * _dice_of_centres(found, lesions, predicted, counts[1])


OWN = {"CCDiceCELoss": CCDiceCELoss, "BlobLoss": BlobLoss, "ICILoss": ICILoss}


def number_lesions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The connected lesions of windows, voxels that share a corner included.

    Args:
        labels: (B, 1, D, H, W) class indices; all but background are lesion.

    Returns:
        (B, D, H, W) int64, 0 outside and the number of its lesion from 1 on through the batch inside, and the (N,)
        index of the window of each lesion.
    """
    masks = labels[:, 0].cpu().numpy() > 0
    numbers, windows = np.zeros(masks.shape, np.int64), []
    for index, mask in enumerate(masks):
        found, count = ndimage.label(mask, np.ones((3, 3, 3)))
        numbers[index] = np.where(mask, found + len(windows), 0)
        windows += [index] * count
    return torch.from_numpy(numbers).to(labels.device), torch.tensor(windows, dtype=torch.int64, device=labels.device)


def nearest_lesions(lesions: torch.Tensor) -> torch.Tensor:
    """The number of the lesion that each voxel of (B, D, H, W) is nearest to, 0 in windows without any."""
    nearest = lesions.cpu().numpy().copy()
    for window in nearest:
        if window.any():
            places = ndimage.distance_transform_edt(window == 0, return_distances=False, return_indices=True)
            window[:] = window[tuple(places)]
    return torch.from_numpy(nearest).to(lesions.device)


def _dices_of_lesions(
    found: torch.Tensor, lesions: torch.Tensor, predicted: torch.Tensor, n_lesions: int, n_predicted: int
) -> torch.Tensor:
    """(N,) Dice loss of each lesion with the predicted ones that touch it.

    Args:
        found: (B, D, H, W) lesion probability.
        lesions, predicted: (B, D, H, W) numbers of the true and of the predicted lesions (`number_lesions`).
    """
    touching = found.new_zeros(n_lesions + 1, n_predicted + 1)
    touching[lesions.flatten(), predicted.flatten()] = 1
    own, size = (_sums(values, lesions, n_lesions) for values in (found, torch.ones_like(found)))
    beside = _sums(found * (lesions == 0), predicted, n_predicted)
    return 1 - (2 * own + SMOOTH) / (own + touching[1:, 1:] @ beside + size + SMOOTH)


def _dice_of_centres(
    found: torch.Tensor, lesions: torch.Tensor, predicted: torch.Tensor, n_predicted: int
) -> torch.Tensor:
    """The Dice loss of the cubes that stand for lesions; arguments as for `_dices_of_lesions`."""
    total, voxels = (_sums(values, predicted, n_predicted) for values in (found, torch.ones_like(found)))
    probability = torch.cat([total.new_zeros(1), total / voxels])[_cubes(predicted)]
    true = (_cubes(lesions) > 0).to(found)
    return 1 - (2 * (probability * true).sum() + SMOOTH) / (probability.sum() + true.sum() + SMOOTH)


def _cubes(numbers: torch.Tensor) -> torch.Tensor:
    """Numbered lesions (B, D, H, W) as numbered cubes about their centres of mass, cut off at the window."""
    lesions = numbers.cpu().numpy()
    cubes = np.zeros_like(lesions)
    for window, cube in zip(lesions, cubes, strict=True):
        present = np.unique(window[window > 0])
        for number, centre in zip(present, ndimage.center_of_mass(window > 0, window, present), strict=True):
            starts = [round(place) - CENTRE // 2 for place in centre]
            cube[tuple(slice(max(start, 0), start + CENTRE) for start in starts)] = number
    return torch.from_numpy(cubes).to(numbers.device)


def _softmax_dice_ce(config: dict) -> nn.Module:
    if config.get("sigmoid") or not config.get("softmax", True):
        raise ValueError("it needs softmax")
    return monai.losses.DiceCELoss(**{"softmax": True, "to_onehot_y": True, **config})


def _lesion_maps(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The probability of any lesion and the cross-entropy of each voxel, (B, D, H, W) both."""
    return 1 - logits.softmax(1)[:, 0], functional.cross_entropy(logits, labels[:, 0], reduction="none")


def _sums(values: torch.Tensor, numbers: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) sums of a map (B, D, H, W) over the voxels of each number from 1 on."""
    return values.new_zeros(count + 1).index_add(0, numbers.flatten(), values.flatten())[1:]


def _dice_ce(
    common: torch.Tensor, found: torch.Tensor, lesion: torch.Tensor, errors: torch.Tensor, voxels: torch.Tensor
) -> torch.Tensor:
    """(N,) Dice loss and mean cross-entropy of parts of a window, from sums over each.

    Args:
        common: lesion probability inside the lesion.
        found: lesion probability.
        lesion: voxels of the lesion.
        errors: cross-entropy.
        voxels: voxels of the part.
    """
    return 1 - (2 * common + SMOOTH) / (found + lesion + SMOOTH) + errors / voxels
