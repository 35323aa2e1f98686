"""What each network of stage 2 learns in the same CPU time, and how long a window takes.

    python -m data.phantom --out_dir data/bench --n_subjects 48 --spacing 3 --seed 7
    python benchmarks/segmenters.py --cohort data/bench --seconds 80
    python benchmarks/segmenters.py --cost    # of an untrained window alone, every network in every size

Every network trains on windows around the lesions (and two elsewhere) of 40 % of the subjects for the same processor
time and is scored on the half that is held out. Two candidates tell what attention brings to TransUNet: one without it,
and one with convolutions of about its cost instead. The data are synthetic.
"""

import argparse
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import find_objects, label
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.ablated import without_attention
from data.batches.datamodules import SegmentationDataModule
from data.files.volumes import volume_shape
from data.scans.checks import read_mask
from data.scans.cohort import pair_cases
from data.scans.folds import cases_of, lesion_loads, make_folds
from data.scans.grid import Grid
from data.scans.prepared import PreparedScan, cached_scan
from models.schedule import learning_rate
from models.segmentation.blocks import convolutions
from models.segmentation.losses import mask_outside
from models.segmentation.module import StrokeFormer
from models.segmentation.networks import SEGMENTERS, build_segmenter
from utils.regions.region import Region, expand_region, region_of
from utils.scores.metrics import scan_scores


@dataclass(frozen=True)
class Candidate:
    """A network, the side of its windows, and what is changed in it."""

    arch: str
    side: int
    change: Callable[[StrokeFormer], object] = lambda model: None

    def build(self) -> StrokeFormer:
        model = StrokeFormer(arch=self.arch, roi_size=(self.side,) * 3)
        self.change(model)
        return model


def with_convolutions(model: StrokeFormer) -> None:
    """Put convolutions of about the cost of its transformer into a TransUNet."""
    model.net.transformer = TokenConvolutions(
        model.net.position.shape[2], [side // 8 for side in model.hparams.roi_size]
    )


class TokenConvolutions(nn.Module):
    """Two convolutions of 27 C^2 weights each: four transformer blocks have 48 C^2."""

    def __init__(self, features: int, grid: list[int]) -> None:
        super().__init__()
        self.grid, self.block = grid, convolutions(features, features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, C) to the same."""
        return self.block(tokens.transpose(1, 2).unflatten(2, self.grid)).flatten(2).transpose(1, 2)


CANDIDATES = {
    "trans_unet 24": Candidate("trans_unet", 24),
    "trans_unet 32": Candidate("trans_unet", 32),
    "without attention": Candidate("trans_unet", 32, lambda model: without_attention(model.net)),
    "convolutions instead": Candidate("trans_unet", 32, with_convolutions),
    "unetr 32": Candidate("unetr", 32),
    "segformer3d 32": Candidate("segformer3d", 32),
    "segformer3d_full 32": Candidate("segformer3d_full", 32),
}


def regions_of(scan: PreparedScan, roi_size: tuple[int, int, int], rng: np.random.Generator) -> list[Region]:
    """A region about each lesion and about two random places in the head."""
    places = find_objects(label(scan.mask)[0])
    places += [tuple(slice(i, i + 1) for i in v.tolist()) for v in rng.choice(np.argwhere(scan.brain), 2)]
    return [expand_region(region_of(place), roi_size, scan.brain.shape) for place in places]


def train(model: StrokeFormer, data: SegmentationDataModule, seconds: float, max_lr: float) -> int:
    """Train for `seconds` of processor time per thread and return the steps it came to."""
    optimizer = torch.optim.AdamW(model.parameters(), max_lr, weight_decay=1e-3)
    budget, start, steps, epoch = seconds * torch.get_num_threads(), time.process_time(), 0, 0
    loader = data.train_dataloader()
    while (spent := time.process_time() - start) < budget:
        loader.sampler.set_epoch(epoch)
        epoch += 1
        for batch in loader:
            optimizer.param_groups[0]["lr"] = learning_rate(int(1000 * spent / budget), 1000, 10, 1e-5, max_lr, 1e-6)
            loss = model.seg_loss(
                *mask_outside(model.half_precision(batch["image"]), batch["mask"].long(), batch["region"])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    return steps


@torch.inference_mode()
def print_costs(side: int = 64) -> None:
    """Parameters of every network, and the least processor time of three windows in 32 bit and in bfloat16."""
    window = torch.rand(1, 1, side, side, side)
    for arch, segmenter in SEGMENTERS.items():
        for size in segmenter.sizes:
            net, seconds = build_segmenter(arch, 1, 2, (side,) * 3, size).eval(), []
            for half in (False, True):
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    timer = timeit.Timer(lambda net=net: net(window), timer=time.process_time)
                    seconds.append(min(timer.repeat(3, number=1)))
            millions = sum(p.numel() for p in net.parameters()) / 1e6
            print(f"{arch:>16} {size:5} {millions:6.1f} M  {seconds[0]:.3f} s, bfloat16 {seconds[1]:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--cohort", type=Path)
    task.add_argument("--cost", action="store_true")
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    args = parser.parse_args()
    if args.cost:
        return print_costs()
    cases = pair_cases([args.cohort / "Scans"], [args.cohort / "Masks"])
    grid = Grid((1, *volume_shape(cases[0].scan)))
    read = partial(cached_scan, grid=grid, cache_dir=args.cohort / "cache")
    fold = make_folds(lesion_loads({case: read_mask(case).mean() for case in cases}), 2, (40, 10, 50), 42)[0]
    for name in args.only:
        torch.manual_seed(0)
        candidate, rng = CANDIDATES[name], np.random.default_rng(0)
        roi_size = (candidate.side,) * 3
        regions = {case.name: regions_of(read(case), roi_size, rng) for case in cases}
        parts = (cases_of(cases, subjects) for subjects in (fold.train, fold.val))
        data = SegmentationDataModule(*parts, regions, grid, roi_size, args.cohort / "cache", 4, 0, ["flip"])
        model = candidate.build()
        steps = train(model, data, args.seconds, max_lr=2e-3)
        held_out = [(read(case), regions[case.name]) for case in cases_of(cases, fold.test)]
        scores = [
            scan_scores(model.segment(scan, listed).argmax(0) > 0, scan.mask, None)["dice"]
            for scan, listed in held_out
            if scan.mask.any()
        ]
        print(f"{name:>20}  {steps:5d} steps  Dice {np.mean(scores):.3f} on {len(scores)} scans")


if __name__ == "__main__":
    main()
