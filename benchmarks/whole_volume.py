"""What users would take in place of StrokeFormer: networks over the whole volume, trained and run as nnU-Net would.

`PEERS` are by name; `train` gives each the same processor time. Patches: a third on a lesion, the rest anywhere in the
brain, and the augmentations of nnU-Net (Isensee et al., 2021, 10.1038/s41592-020-01008-z). Prediction: sliding window
with an overlap of 0.5. Both compute in bfloat16 where the hardware has it, as ours does.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from monai import transforms
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from torch import nn

from data.files.space import cut
from data.scans.prepared import PreparedScan
from models.precision import NARROWEST_MAP, autocast

LESION_SHARE = 1 / 3  # of the patches; nnU-Net's share of foreground
OVERLAP = 0.5
DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)  # of MeshNet's layers
Patch = tuple[int, int, int]


@dataclass(frozen=True)
class Peer:
    """A network with what it learns by.

    build: from the number of input channels to a network with two classes.
    patch: (D, H, W) in voxels. batch: patches a step.
    narrowest_map: as for `models.precision.autocast`.
    optimiser: from parameters to an optimiser; its rate decays with the power 0.9 of the time that is left.
    """

    build: Callable[[int], nn.Module]
    patch: Patch = (64, 64, 64)
    batch: int = 2
    narrowest_map: int = NARROWEST_MAP
    optimiser: Callable = lambda parameters: torch.optim.AdamW(parameters, 1e-3, weight_decay=1e-4)


# --- networks ------------------------------------------------------------------------------------------


def segresnet(in_channels: int) -> nn.Module:
    return SegResNet(3, 16, in_channels, 2)


def dynunet(in_channels: int) -> nn.Module:
    """nnU-Net's plan of ``3d_fullres`` for a volume of about 90 x 100 x 120 voxels of one size: five levels."""
    levels = 5
    return DynUNet(
        *(3, in_channels, 2),
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=[min(32 * 2**level, 320) for level in range(levels)],
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=True,
        deep_supr_num=levels - 2,
    )


def swin_unetr(in_channels: int) -> nn.Module:
    return SwinUNETR(in_channels, 2, feature_size=12)


def meshnet(in_channels: int, width: int = 26) -> nn.Module:
    """A stack of dilated convolutions at full resolution, about 0.15 M parameters (arXiv 2503.05531)."""
    layers = []
    for channels, dilation in zip([in_channels] + [width] * (len(DILATIONS) - 1), DILATIONS, strict=True):
        layers += [nn.Conv3d(channels, width, 3, padding=dilation, dilation=dilation), nn.BatchNorm3d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv3d(width, 2, 1))


def nnunet_sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)


PEERS = {
    "segresnet": Peer(segresnet),
    "dynunet": Peer(dynunet, optimiser=nnunet_sgd),
    "swin_unetr": Peer(swin_unetr, narrowest_map=2),
    "meshnet": Peer(meshnet),
}


# --- training ------------------------------------------------------------------------------------------


def augmentation() -> transforms.Compose:
    """nnU-Net's, with MONAI's transforms, on ``image`` and ``mask``, (C, D, H, W)."""
    turn, both = np.deg2rad(30), ("image", "mask")
    return transforms.Compose(
        [
            transforms.RandAffined(
                both,
                prob=0.2,
                rotate_range=[turn] * 3,
                scale_range=[(-0.3, 0.4)] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            transforms.RandGaussianNoised("image", 0.1, std=0.05),
            transforms.RandGaussianSmoothd("image", (0.5, 1), (0.5, 1), (0.5, 1), prob=0.1),
            transforms.RandScaleIntensityd("image", 0.25, 0.15),
            transforms.RandSimulateLowResolutiond("image", 0.125, zoom_range=(0.5, 1)),
            transforms.RandAdjustContrastd("image", 0.3, (0.7, 1.5)),
            *(transforms.RandFlipd(both, 0.5, axis) for axis in range(3)),
        ]
    )


def train(peer: Peer, scans: list[PreparedScan], seconds: float, seed: int) -> tuple[nn.Module, int]:
    """The network after `seconds` of processor time, and the steps it came to."""
    torch.manual_seed(seed)
    rng, augment = np.random.default_rng(seed), augmentation().set_random_state(seed)
    network = peer.build(len(scans[0].scan))
    optimizer = peer.optimiser(network.parameters())
    rate, started, steps = optimizer.param_groups[0]["lr"], time.process_time(), 0
    lesions = [np.argwhere(scan.mask & scan.brain) for scan in scans]
    while (spent := (time.process_time() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = rate * (1 - spent) ** 0.9
        chosen = rng.integers(len(scans), size=peer.batch)
        items = [augment(draw_patch(scans[i], lesions[i], peer.patch, rng)) for i in chosen]
        images, masks = (torch.stack([torch.as_tensor(item[key]) for item in items]) for key in ("image", "mask"))
        loss = loss_of(half_precision(network, images, peer.narrowest_map), masks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)  # nnU-Net's
        optimizer.step()
        steps += 1
    return network.eval(), steps


def half_precision(network: nn.Module, images: torch.Tensor, narrowest_map: int) -> torch.Tensor:
    with autocast(images.device, narrowest_map):
        return network(images).float()


def draw_patch(scan: PreparedScan, lesion: np.ndarray, patch: Patch, rng: np.random.Generator) -> dict:
    """A patch about a voxel of lesion, or one anywhere in the brain."""
    on_lesion = len(lesion) and rng.random() < LESION_SHARE
    middle = lesion[rng.integers(len(lesion))] if on_lesion else _brain_voxel(scan.brain, rng)
    start = [int(m - side // 2) for m, side in zip(middle, patch, strict=True)]
    image, mask = cut(scan.scan, start, patch), cut((scan.mask & scan.brain)[None], start, patch)
    return {"image": image.astype(np.float32), "mask": mask.astype(np.float32)}


def _brain_voxel(brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    while True:  # a third of the volume is brain
        voxel = rng.integers(brain.shape)
        if brain[tuple(voxel)]:
            return voxel


def loss_of(outputs: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Dice and cross-entropy; of all levels where outputs (B, levels, 2, D, H, W) come from several."""
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    if outputs.ndim == 6:
        return DeepSupervisionLoss(loss)(list(outputs.unbind(1)), masks)
    return loss(outputs, masks)


# --- prediction ----------------------------------------------------------------------------------------


@torch.inference_mode()
def segment(network: nn.Module, peer: Peer, scan: PreparedScan) -> np.ndarray:
    """Class probabilities (2, D, H, W) float32 of a prepared scan; background outside the brain."""
    image = torch.from_numpy(scan.scan.astype(np.float32))[None]
    predict = partial(half_precision, network, narrowest_map=peer.narrowest_map)
    logits = sliding_window_inference(image, peer.patch, 2, predict, OVERLAP, mode="gaussian")
    probabilities = logits[0].softmax(0).numpy()
    probabilities[1] *= scan.brain
    probabilities[0] = 1 - probabilities[1]
    return probabilities
