"""What users would take in place of StrokeFormer: networks over the whole volume, trained as nnU-Net trains.

`register` puts them among `NETWORKS`: the project's scripts then take their checkpoints, decide and score alike.
A third of the patches has its middle on a lesion, the rest anywhere in the brain; augmentations, gradient clipping and
decay of the rate are nnU-Net's (Isensee et al., 2021, 10.1038/s41592-020-01008-z).
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from monai import transforms
from monai.data import Dataset, list_data_collate, set_track_meta
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet, SegResNet
from torch import nn
from torch.utils.data import DataLoader

from data.scans.grid import Grid
from data.scans.prepared import PreparedScan
from models.checkpoints import MarkCheckpoint, write_checkpoint
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import NETWORKS, Network

LESION_PATCHES, OTHER_PATCHES = 1, 2
RATE, WEIGHT_DECAY = 1e-3, 1e-4  # of AdamW, which learns more in few steps than nnU-Net's SGD
GRADIENT_CLIP, DECAY = 12, 0.9  # DECAY is the power of the time that is left, with which the rate falls


@dataclass(frozen=True)
class Peer:
    """How a network is trained: on so many patches of a size (D, H, W) at a time; `window` is that of predictions."""

    network: Network
    patch: tuple[int, int, int]
    batch_size: int
    window: tuple[int, int, int]


# MeshNet sees the whole grid at once; its patches are as large as most brains on voxels of 2 mm.
PEERS = {
    "segresnet": Peer(Network("whole_volume.segresnet", 8), (64, 64, 64), 2, (64, 64, 64)),
    "dynunet": Peer(Network("whole_volume.dynunet", 16), (64, 64, 64), 2, (64, 64, 64)),
    "meshnet": Peer(Network("whole_volume.meshnet", 1), (72, 80, 96), 1, (73, 112, 112)),
}


def register() -> None:
    """Add the peers to `NETWORKS` of this process."""
    NETWORKS.update({name: peer.network for name, peer in PEERS.items()})


def segresnet(in_channels: int, num_classes: int) -> nn.Module:
    return SegResNet(3, 16, in_channels, num_classes)


def dynunet(in_channels: int, num_classes: int) -> nn.Module:
    """nnU-Net's plan for patches of 64 voxels: halved to 4, 32 to 320 filters, deep supervision."""
    strides = [1, 2, 2, 2, 2]
    kernels = [3] * len(strides)
    return DynUNet(3, in_channels, num_classes, kernels, strides, strides[1:], deep_supervision=True, deep_supr_num=2)


def meshnet(in_channels: int, num_classes: int) -> nn.Module:
    """MeshNet-26 (arXiv 2503.05531): full resolution all through, 147,474 parameters."""
    dilations, filters = (1, 2, 4, 8, 16, 8, 4, 2, 1), 26
    layers: list[nn.Module] = []
    for before, dilation in zip([in_channels] + [filters] * len(dilations), dilations, strict=False):
        convolution = nn.Conv3d(before, filters, 3, padding=dilation, dilation=dilation)
        layers += [convolution, nn.BatchNorm3d(filters), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv3d(filters, num_classes, 1))


def augmentation() -> list[transforms.Transform]:
    """nnU-Net's, with MONAI's transforms, on ``image`` and ``mask``, (C, D, H, W)."""
    turn, both = np.deg2rad(30), ("image", "mask")
    return [
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


def batches(scans: list[PreparedScan], peer: Peer, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Without end: ``image`` and ``mask`` (B, 1, *patch) float32 of random scans."""
    set_track_meta(False)
    warnings.filterwarnings("ignore", "Num foregrounds 0")  # of healthy scans
    both = ("image", "mask")
    crop = transforms.RandCropByPosNegLabeld(
        both, "mask", peer.patch, LESION_PATCHES, OTHER_PATCHES, num_samples=1, image_key="image"
    )
    steps = [crop, transforms.CastToTyped(both, torch.float32), *augmentation()]
    transform = transforms.Compose(steps).set_random_state(seed)
    items = [{"image": np.array(scan.scan), "mask": (scan.mask & scan.brain)[None]} for scan in scans]
    # torch's loader: MONAI's begins with the same random numbers in each epoch.
    loader = DataLoader(Dataset(items, transform), peer.batch_size, shuffle=True, collate_fn=list_data_collate)
    while True:
        yield from loader


def train(name: str, scans: list[PreparedScan], seconds: float, seed: int) -> StrokeFormer:
    """A peer after `seconds` of processor time."""
    pl.seed_everything(seed, verbose=False)
    peer, started, steps = PEERS[name], time.process_time(), 0
    model = StrokeFormer(arch=name, roi_size=peer.window).train().to(memory_format=torch.channels_last_3d)
    loss_of = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True))
    optimizer = torch.optim.AdamW(model.net.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    stream = batches(scans, peer, seed)
    while (spent := (time.process_time() - started) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = RATE * (1 - spent) ** DECAY
        batch = next(stream)
        logits = model.half_precision(batch["image"])
        heads = logits.unbind(1) if logits.dim() == 6 else [logits]  # of deep supervision, the full resolution first
        optimizer.zero_grad()
        loss_of(list(heads), batch["mask"]).backward()
        nn.utils.clip_grad_norm_(model.net.parameters(), GRADIENT_CLIP)
        optimizer.step()
        steps += 1
    print(f"{name}: {steps} steps of {peer.batch_size} patches in {seconds / 60:.1f} minutes of processor time")
    return model.eval()


def save(path: Path, model: StrokeFormer, grid: Grid, contrast: str) -> None:
    """Write a checkpoint as a training of stage 2 does."""
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    MarkCheckpoint(grid, contrast).on_save_checkpoint(None, model, checkpoint)
    write_checkpoint(path, checkpoint)
