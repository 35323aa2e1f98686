"""Segmentation losses: any of MONAI's by name, blind to voxels outside the proposed regions."""

import monai.losses
import torch
from torch import nn

from utils.errors import UserError

CERTAIN = 20.0  # a logit gap whose cross-entropy (2e-9) and Dice gradient vanish in float32


def build_loss(name: str, config: dict) -> nn.Module:
    """A MONAI loss on (logits, labels), e.g. ``build_loss("DiceCELoss", {"softmax": True, "to_onehot_y": True})``."""
    kind = getattr(monai.losses, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"--seg_loss {name} is no loss of monai.losses; try DiceCELoss, DiceFocalLoss or TverskyLoss")
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
