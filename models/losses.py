"""Segmentation losses: MONAI's and two that count lesions, by name; blind to voxels outside the proposed regions."""

import monai.losses
import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from utils.errors import UserError

CERTAIN = 20.0  # a logit gap whose cross-entropy (2e-9) and Dice gradient vanish in float32
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


OWN = {"CCDiceCELoss": CCDiceCELoss, "BlobLoss": BlobLoss}


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
