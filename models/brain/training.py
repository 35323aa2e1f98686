"""Training of the network that finds the brain."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from monai.losses import DiceLoss
from torch.export import Dim
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.brain.augment import draw_example
from models.brain.heads import Head
from models.brain.network import BrainNet
from models.export.networks import to_onnx
from models.export.weights import halve_weights
from utils.files import atomic_path
from utils.progress import progress

BATCH, RATE, DECAY = 2, 3e-3, 1e-2
WARM_UP = 0.05  # share of the steps in which the rate rises
AVERAGE = 0.99  # of the weights' running mean, which is what is kept
EVERY = 50  # steps between two lines


def train(heads: Sequence[Head], steps: int, seed: int) -> BrainNet:
    """A network that has learned from random views of the heads, on the CPU."""
    torch.manual_seed(seed)
    rng, network = np.random.default_rng(seed), BrainNet().to(memory_format=torch.channels_last_3d)
    mean = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=WARM_UP)
    dice_loss, losses = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0), []
    for step in progress(range(1, steps + 1), "Training", unit="step"):
        examples = [draw_example(heads[i], rng) for i in rng.integers(len(heads), size=BATCH)]
        image, brain, weight = (torch.from_numpy(np.stack(parts))[:, None] for parts in zip(*examples, strict=True))
        logits = network(image.to(memory_format=torch.channels_last_3d))
        loss = functional.binary_cross_entropy_with_logits(logits, brain, weight) + dice_loss(logits, brain)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1)
        optimizer.step()
        schedule.step()
        mean.update_parameters(network)
        losses.append(loss.item())
        if step % EVERY == 0:
            print(f"step {step}: loss {np.mean(losses[-EVERY:]):.4f}", flush=True)
    return cast(BrainNet, mean.module.eval())


def export(network: BrainNet, path: Path) -> None:
    """Write a network as ONNX, for volumes of any size, with weights in half precision."""
    sides = dict.fromkeys((2, 3, 4), Dim.AUTO)
    model = halve_weights(to_onnx(network, (torch.zeros(1, 1, 64, 72, 80),), ["image"], (sides,)))
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
