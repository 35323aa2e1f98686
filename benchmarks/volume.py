"""One scan from file to file: the seconds of each step, and the memory, beside a network over the whole volume.

    python benchmarks/volume.py --out_dir runs/volume

A synthetic head with skull at 1 mm (.nii.gz), the default grid of 189 x 192 x 192 and a window of 64 x 64 x 64. The
networks have not learned anything: their time does not depend on it. In the place of what an untrained stage 1
proposes, regions about the true lesions and others at random fill `FRACTION` of the brain. Both programs read, find the
brain, prepare and write in the same way; each runs in a process of its own, whose libraries are loaded before.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import draw, peak_memory_gib, print_markdown, run, timed, true_regions
from segresnet import build, segment

from data.files.volumes import write_like
from data.scans.brain import find_brain
from data.scans.checks import find_head, read_mask, read_scan, space_of
from data.scans.cohort import Case
from data.scans.grid import Grid, own_space
from data.scans.prepared import PreparedScan, place
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import ROI_SIZE
from utils.files import read_json, write_json
from utils.regions.region import Region, expand_region, region_mask

GRID = Grid((1, 189, 192, 192), spacing_mm=(1.0,) * 3)
FRACTION = 0.3  # of the brain that is proposed
REPEATS = {"ours": 3, "segresnet": 1}  # the least seconds of so many runs
Program = Callable[[PreparedScan, dict], np.ndarray]  # to class probabilities; the seconds go into the dict


def draw_head(out_dir: Path, spacing_mm: int = 1, n_subjects: int = 1) -> list[Case]:
    more = ["--healthy_fraction", 0, "--ext", ".nii.gz"]
    return draw(out_dir / "cohort", 0, n_subjects, *more, spacing_mm=(spacing_mm,))


def regions_of(scan: PreparedScan) -> list[Region]:
    """Regions about the lesions, and others about random voxels of the brain until `FRACTION` of it is proposed."""
    rng, voxels, shape = np.random.default_rng(0), np.argwhere(scan.brain), scan.brain.shape
    regions = true_regions(scan, ROI_SIZE)
    while (region_mask(regions, shape) & scan.brain).sum() < FRACTION * len(voxels):
        d, h, w = voxels[rng.integers(len(voxels))].tolist()
        regions.append(expand_region(Region(d, d + 1, w, h, w + 1, h + 1), ROI_SIZE, shape))
    return regions


def two_stages(rpn: RPN, model: StrokeFormer) -> Program:
    def predict(scan: PreparedScan, seconds: dict) -> np.ndarray:
        timed("stage 1", seconds, lambda: rpn.propose(scan, rpn.detect_volume(scan), model.window, 0.01))
        return timed("network", seconds, lambda: model.segment(scan, regions_of(scan)))

    return predict


def load(name: str) -> Program:
    """A program with untrained networks."""
    torch.manual_seed(0)
    if name == "ours":
        return two_stages(RPN().eval().to(memory_format=torch.channels_last), StrokeFormer(roi_size=ROI_SIZE).eval())
    network = build().eval()
    return lambda scan, seconds: timed("network", seconds, lambda: segment(network, scan))


def run_once(case: Case, program: Program, out_file: Path) -> dict[str, float]:
    """Seconds of each step."""
    seconds = {}
    raw = timed("read", seconds, lambda: read_scan(case))
    head = timed("head", seconds, lambda: find_head(raw, case))
    brain = timed("brain", seconds, lambda: find_brain(raw[0], head, space_of(case)))
    own = own_space(case, GRID.spacing_mm)
    space, mask = GRID.space_about(brain, own), read_mask(case)
    scan = timed("preprocess", seconds, lambda: place(case, raw, brain, mask, own, space))
    probabilities = program(scan, seconds)
    lesions = timed("own grid", seconds, lambda: scan.to_own_grid(probabilities).argmax(0).astype(np.uint8))
    timed("write", seconds, lambda: write_like(out_file, lesions, case.scan))
    return seconds


def fastest(case: Case, program: Program, repeats: int, out_file: Path) -> dict[str, float]:
    """Seconds of each step of the fastest run, and of all."""
    runs = [run_once(case, program, out_file) for _ in range(repeats)]
    best = min(runs, key=lambda seconds: sum(seconds.values()))
    return {**best, "all": sum(best.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--alone", choices=REPEATS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    out_dir, name = args.out_dir.absolute(), args.alone
    (case,) = draw_head(out_dir)
    if name:
        row = fastest(case, load(name), REPEATS[name], out_dir / f"{name}.nii.gz")
        return write_json(out_dir / f"{name}.json", {**row, "GiB": peak_memory_gib()})
    for each in REPEATS:
        run(__file__, "--out_dir", out_dir, "--alone", each)
    rows = {each: read_json(out_dir / f"{each}.json") for each in REPEATS}
    print(f"{torch.get_num_threads()} threads")
    print_markdown([{"seconds": each, **{s: f"{v:.2f}" for s, v in row.items()}} for each, row in rows.items()])


if __name__ == "__main__":
    main()
