"""What each network of stage 2 learns in the same CPU time, and how long a window takes.

    python -m data.phantom --out_dir data/bench --n_subjects 48 --spacing 3 --seed 7
    python benchmarks/segmenters.py --cohort data/bench --seconds 80

Every network trains on windows around the lesions (and two elsewhere) of 40 % of the subjects for the same processor
time and is scored on the half that is held out. The data are synthetic.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import find_objects, label

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.checks import read_mask
from data.cohort import pair_cases
from data.datamodules import SegmentationDataModule
from data.folds import cases_of, lesion_loads, make_folds
from data.grid import Grid
from data.prepared import PreparedScan, cached_scan
from data.volumes import volume_shape
from models.losses import mask_outside
from models.schedule import learning_rate
from models.strokeformer import StrokeFormer
from utils.metrics import scan_scores
from utils.regions.region import Region, expand_region, region_of

CANDIDATES = [("trans_unet", 24), ("trans_unet", 32), ("unetr", 32)]


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
            loss = model.seg_loss(*mask_outside(model(batch["image"]), batch["mask"].long(), batch["region"]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=80)
    args = parser.parse_args()
    cases = pair_cases([args.cohort / "Scans"], [args.cohort / "Masks"])
    grid = Grid((1, *volume_shape(cases[0].scan)))
    read = partial(cached_scan, grid=grid, cache_dir=args.cohort / "cache")
    fold = make_folds(lesion_loads({case: read_mask(case).mean() for case in cases}), 2, (40, 10, 50), 42)[0]
    for arch, side in CANDIDATES:
        torch.manual_seed(0)
        roi_size, rng = (side,) * 3, np.random.default_rng(0)
        regions = {case.name: regions_of(read(case), roi_size, rng) for case in cases}
        parts = (cases_of(cases, subjects) for subjects in (fold.train, fold.val))
        data = SegmentationDataModule(*parts, regions, grid, roi_size, args.cohort / "cache", 4, 0, ["flip"])
        model = StrokeFormer(arch=arch, roi_size=roi_size)
        steps = train(model, data, args.seconds, max_lr=2e-3)
        held_out = [(read(case), regions[case.name]) for case in cases_of(cases, fold.test)]
        scores = [
            scan_scores(model.segment(scan, listed).argmax(0) > 0, scan.mask, None)["dice"]
            for scan, listed in held_out
            if scan.mask.any()
        ]
        print(f"{arch:>12}  window {side}^3  {steps:5d} steps  Dice {np.mean(scores):.3f} on {len(scores)} scans")


if __name__ == "__main__":
    main()
