"""What users would take in place of StrokeFormer: a SegResNet over the whole volume, trained and run as nnU-Net would.

Patches: a third on a lesion, the rest anywhere in the brain, and the augmentations of nnU-Net (Isensee et al., 2021,
10.1038/s41592-020-01008-z). Prediction: sliding window with an overlap of 0.5. Both compute in bfloat16 where the
hardware has it, as ours does.
"""

import time

import numpy as np
import torch
from monai import transforms
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from torch import nn

from data.files.space import cut
from data.scans.prepared import PreparedScan
from models.precision import autocast

PATCH, BATCH_SIZE = (64, 64, 64), 2
LESION_SHARE = 1 / 3  # of the patches; nnU-Net's share of foreground
OVERLAP = 0.5
GRADIENT_CLIP = 12  # nnU-Net's
DECAY = 0.9  # power of the time that is left, with which the rate decays; nnU-Net's


def build() -> nn.Module:
    return SegResNet(3, 16, in_channels=1, out_channels=2)


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


def train(scans: list[PreparedScan], seconds: float, seed: int) -> nn.Module:
    """The network after `seconds` of processor time."""
    torch.manual_seed(seed)
    rng, augment = np.random.default_rng(seed), augmentation().set_random_state(seed)
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    network, rate, started, steps = build(), 1e-3, time.process_time(), 0
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
    lesions = [np.argwhere(scan.mask & scan.brain) for scan in scans]
    while (spent := (time.process_time() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = rate * (1 - spent) ** DECAY
        chosen = rng.integers(len(scans), size=BATCH_SIZE)
        items = [augment(draw_patch(scans[i], lesions[i], rng)) for i in chosen]
        images, masks = (torch.stack([torch.as_tensor(item[key]) for item in items]) for key in ("image", "mask"))
        loss = loss_of(half_precision(network, images), masks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        optimizer.step()
        steps += 1
    print(f"SegResNet: {steps} steps in {seconds:.0f} s of processor time")
    return network.eval()


def half_precision(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with autocast(images.device):
        return network(images).float()


def draw_patch(scan: PreparedScan, lesion: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A patch about a voxel of lesion, one of (N, 3), or about one anywhere in the brain."""
    on_lesion = len(lesion) and rng.random() < LESION_SHARE
    middle = lesion[rng.integers(len(lesion))] if on_lesion else brain_voxel(scan.brain, rng)
    start = [int(m - side // 2) for m, side in zip(middle, PATCH, strict=True)]
    image, mask = cut(scan.scan, start, PATCH), cut((scan.mask & scan.brain)[None], start, PATCH)
    return {"image": image.astype(np.float32), "mask": mask.astype(np.float32)}


def brain_voxel(brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    while True:  # a third of the volume is brain
        voxel = rng.integers(brain.shape)
        if brain[tuple(voxel)]:
            return voxel


@torch.inference_mode()
def segment(network: nn.Module, scan: PreparedScan) -> np.ndarray:
    """Class probabilities (2, D, H, W) float32 of a prepared scan; background outside the brain."""
    image = torch.from_numpy(scan.scan.astype(np.float32))[None]
    logits = sliding_window_inference(
        image, PATCH, BATCH_SIZE, lambda windows: half_precision(network, windows), OVERLAP, mode="gaussian"
    )
    lesion = logits[0].softmax(0).numpy()[1] * scan.brain
    return np.stack([1 - lesion, lesion])
