"""Segmentation losses: MONAI's and two that count lesions, by name; blind to voxels outside the proposed regions."""

import monai.losses
import numpy as np
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional

from utils.errors import UserError

CERTAIN = 20.0  # a logit gap whose cross-entropy (2e-9) and Dice gradient vanish in float32
LESION = 0.5  # the probability above which voxels are a predicted lesion
CENTRE = 7  # voxels along the edge of the cube around a lesion's centre
SMOOTH = 1e-5  # of a Dice, as in MONAI: that of two empty masks is 1


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


def mask_outside(logits: torch.Tensor, labels: torch.Tensor, region: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Make voxels outside the regions certain, correct background (class 0), from which no loss can learn: of logits
    (B, K, D, H, W) and class indices (B, 1, D, H, W), given regions of the indices' shape, nonzero inside."""
    inside = region > 0
    background = torch.full_like(logits, -CERTAIN)
    background[:, 0] = CERTAIN
    return torch.where(inside, logits, background), torch.where(inside, labels, torch.zeros_like(labels))


class CCDiceCELoss(nn.Module):
    """DiceCE of the batch, and `lesion_weight` times the mean over lesions of the DiceCE in each one's Voronoi region.

    That holds the voxels of its window that are nearer to it than to any other lesion, so a false positive counts
    against the lesion next to it. CC-DiceCE, Bouteille et al., 2025, arXiv 2511.17146, after the CC-Metrics of Jaus et
    al., 2024, arXiv 2410.18684. `config` is of MONAI's ``DiceCELoss`` for the batch, with softmax.
    """

    def __init__(self, lesion_weight: float = 1.0, **config) -> None:
        super().__init__()
        self.batch_loss, self.lesion_weight = _softmax_dice_ce(config), lesion_weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, D, H, W), class 0 background, and class indices (B, 1, D, H, W) to a scalar."""
        loss, (lesions, windows) = self.batch_loss(logits, labels), number_lesions(labels)
        if not len(windows):
            return loss
        probability, nearest = 1 - logits.softmax(1)[:, 0], nearest_lesions(lesions)
        inside = (lesions > 0).to(probability)
        errors = functional.cross_entropy(logits, labels[:, 0], reduction="none")
        maps = (probability * inside, probability, inside, errors, torch.ones_like(probability))
        common, predicted, true, wrong, voxels = (_sums(values, nearest, len(windows)) for values in maps)
        of_lesions = 1 - (2 * common + SMOOTH) / (predicted + true + SMOOTH) + wrong / voxels
        return loss + self.lesion_weight * of_lesions.mean()


class ICILoss(nn.Module):
    """DiceCE of the batch, the mean over lesions of the Dice of each, and the Dice of the centres of all.

    A lesion is compared with the predicted lesions that touch it, less what these have in common with other lesions.
    For the centres each lesion, true or predicted, is one cube of `CENTRE` voxels, so that all missed and false ones
    cost the same; a predicted cube has the mean probability of its lesion. Instance-wise and centre-of-instance loss,
    Rachmadi et al., 2023, arXiv 2304.06229, which uses Dice alone for the batch. Arguments as for `CCDiceCELoss`.
    """

    def __init__(self, lesion_weight: float = 1.0, centre_weight: float = 1.0, **config) -> None:
        super().__init__()
        self.batch_loss, self.lesion_weight, self.centre_weight = _softmax_dice_ce(config), lesion_weight, centre_weight

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """As `CCDiceCELoss`."""
        loss, (lesions, windows) = self.batch_loss(logits, labels), number_lesions(labels)
        probability = 1 - logits.softmax(1)[:, 0]  # of any lesion
        predicted, predicted_windows = number_lesions((probability > LESION)[:, None])
        n_lesions, n_predicted, ones = len(windows), len(predicted_windows), torch.ones_like(probability)
        if n_lesions:
            touching = probability.new_zeros(n_lesions + 1, n_predicted + 1)
            touching[lesions.flatten(), predicted.flatten()] = 1
            own, size = (_sums(values, lesions, n_lesions) for values in (probability, ones))
            beside = _sums(probability * (lesions == 0), predicted, n_predicted)
            of_lesions = 1 - (2 * own + SMOOTH) / (own + touching[1:, 1:] @ beside + size + SMOOTH)
            loss = loss + self.lesion_weight * of_lesions.mean()
        total, voxels = (_sums(values, predicted, n_predicted) for values in (probability, ones))
        cubes = torch.cat([total.new_zeros(1), total / voxels])[_cubes(predicted)]
        true = (_cubes(lesions) > 0).to(cubes)
        of_centres = 1 - (2 * (cubes * true).sum() + SMOOTH) / (cubes.sum() + true.sum() + SMOOTH)
        return loss + self.centre_weight * of_centres


OWN = {"CCDiceCELoss": CCDiceCELoss, "ICILoss": ICILoss}


def number_lesions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of windows (B, 1, D, H, W) of class indices the number of each voxel's 26-connected lesion, (B, D, H, W) int64
    from 1 on through the batch and 0 for background, and the (N,) index of each lesion's window."""
    masks = labels[:, 0].cpu().numpy() > 0
    numbers = np.zeros(masks.shape, np.int64)
    windows: list[int] = []
    for index, mask in enumerate(masks):
        lesions, count = ndimage.label(mask, np.ones((3, 3, 3)))
        numbers[index] = np.where(mask, lesions + len(windows), 0)
        windows += [index] * count
    return torch.from_numpy(numbers).to(labels.device), torch.tensor(windows, dtype=torch.int64, device=labels.device)


def nearest_lesions(lesions: torch.Tensor) -> torch.Tensor:
    """The number of the lesion nearest to each voxel of (B, D, H, W), 0 in windows without any."""
    nearest = lesions.cpu().numpy().copy()
    for window in nearest:
        if window.any():
            places = ndimage.distance_transform_edt(window == 0, return_distances=False, return_indices=True)
            window[:] = window[tuple(places)]
    return torch.from_numpy(nearest).to(lesions.device)


def _cubes(numbers: torch.Tensor) -> torch.Tensor:
    """Numbered cubes around the centres of mass of numbered lesions (B, D, H, W), cut off at the window."""
    lesions = numbers.cpu().numpy()
    cubes = np.zeros_like(lesions)
    for window, cube in zip(lesions, cubes, strict=True):
        present = np.unique(window[window > 0])
        for number, centre in zip(present, np.array(ndimage.center_of_mass(window > 0, window, present)), strict=True):
            starts = [round(place) - CENTRE // 2 for place in centre]
            cube[tuple(slice(max(start, 0), start + CENTRE) for start in starts)] = number
    return torch.from_numpy(cubes).to(numbers.device)


def _softmax_dice_ce(config: dict) -> nn.Module:
    if config.get("sigmoid") or not config.get("softmax", True):
        raise ValueError("it needs softmax")
    return monai.losses.DiceCELoss(**{"softmax": True, "to_onehot_y": True, **config})


def _sums(values: torch.Tensor, numbers: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) sums of a map (B, D, H, W) over the voxels of each number from 1 on."""
    return values.new_zeros(count + 1).index_add(0, numbers.flatten(), values.flatten())[1:]
