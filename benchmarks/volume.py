"""One scan from file to file: the seconds of each step, and the memory, beside networks over the whole volume.

    python benchmarks/volume.py --out_dir runs/volume

A synthetic head with skull at 1 mm (.nii.gz), the default grid of 189 x 192 x 192 and a window of 64 x 64 x 64. The
networks have not learned anything: their time does not depend on it. In the place of what an untrained stage 1
proposes, regions about the true lesions and others at random fill `FRACTION` of the brain. All programs read, find the
brain, prepare and write in the same way; each runs in a process of its own, whose libraries are loaded before.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.peers import print_markdown, true_regions
from benchmarks.proposals import run
from benchmarks.whole_volume import PEERS, segment
from data.files.volumes import write_like
from data.scans.brain import find_brain
from data.scans.checks import find_head, read_mask, read_scan, space_of
from data.scans.cohort import Case, pair_cases
from data.scans.grid import Grid, own_space
from data.scans.prepared import PreparedScan, place
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from utils.files import read_json, write_json
from utils.regions.region import Region, expand_region, region_mask

GRID, ROI_SIZE = Grid((1, 189, 192, 192), spacing_mm=(1.0,) * 3), (64, 64, 64)
FRACTION = 0.3  # of the brain that is proposed: calibration's budget
REPEATS = 3  # the least seconds of so many runs


def draw(out_dir: Path) -> Case:
    if not (out_dir / "c/Scans").exists():
        size = ["--n_subjects", 1, "--healthy_fraction", 0, "--spacing", 1, "--ext", ".nii.gz"]
        run("-m", "data.phantom", "--out_dir", out_dir / "c", *size)
    return pair_cases([out_dir / "c/Scans"], [out_dir / "c/Masks"])[0]


def regions_of(scan: PreparedScan) -> list[Region]:
    """Regions about the lesions, and others about random voxels of the brain until `FRACTION` of it is proposed."""
    rng, voxels, shape = np.random.default_rng(0), np.argwhere(scan.brain), scan.brain.shape
    regions = [expand_region(region, ROI_SIZE, shape) for region in true_regions(scan)]
    while (region_mask(regions, shape) & scan.brain).sum() < FRACTION * len(voxels):
        d, h, w = voxels[rng.integers(len(voxels))].tolist()
        regions.append(expand_region(Region(d, d + 1, w, h, w + 1, h + 1), ROI_SIZE, shape))
    return regions


# --- the programs --------------------------------------------------------------------------------------


def two_stages() -> Callable[[PreparedScan, dict], np.ndarray]:
    torch.manual_seed(0)
    rpn = RPN(evidence_growth=5.0).eval().to(memory_format=torch.channels_last)
    model = StrokeFormer(roi_size=ROI_SIZE).eval()

    def predict(scan: PreparedScan, seconds: dict) -> np.ndarray:
        timed("stage 1", seconds, lambda: rpn.propose(scan, rpn.detect_volume(scan), ROI_SIZE, 0.01))
        return timed("network", seconds, lambda: model.segment(scan, regions_of(scan), batch_size=8))

    return predict


def whole_volume(name: str) -> Callable[[PreparedScan, dict], np.ndarray]:
    network = PEERS[name].build(1).eval()
    return lambda scan, seconds: timed("network", seconds, lambda: segment(network, PEERS[name], scan))


PROGRAMS = {"ours": two_stages, **{name: lambda name=name: whole_volume(name) for name in PEERS}}


def timed(step: str, seconds: dict, work: Callable):
    started = time.perf_counter()
    result = work()
    seconds[step] = time.perf_counter() - started
    return result


def run_once(case: Case, program: Callable, out_file: Path) -> dict[str, float]:
    """Seconds of each step."""
    seconds = {}
    raw = timed("read", seconds, lambda: read_scan(case))
    head = timed("head", seconds, lambda: find_head(raw, case))
    brain = timed("brain", seconds, lambda: find_brain(raw[0], head, "T1w", space_of(case)))
    own = own_space(case, GRID)
    space, mask = GRID.space_about(brain, own), read_mask(case)
    scan = timed("prepare", seconds, lambda: place(case, raw, brain, mask, own, space))
    probabilities = program(scan, seconds)
    found = timed("own grid", seconds, lambda: scan.to_own_grid(probabilities).argmax(0).astype(np.uint8))
    timed("write", seconds, lambda: write_like(out_file, found, case.scan))
    return seconds


def measure(out_dir: Path, name: str) -> None:
    case, program = draw(out_dir), PROGRAMS[name]()
    runs = [run_once(case, program, out_dir / f"{name}.nii.gz") for _ in range(1 if name in PEERS else REPEATS)]
    best = min(runs, key=lambda seconds: sum(seconds.values()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write_json(out_dir / f"{name}.json", {**best, "all": sum(best.values()), "GiB": memory})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out_dir = args.out_dir.absolute()
    if args.alone:
        measure(out_dir, *args.programs)
        return
    draw(out_dir)
    for name in args.programs:
        run(__file__, "--out_dir", out_dir, "--alone", "--programs", name)
    rows = {name: read_json(out_dir / f"{name}.json") for name in args.programs}
    print(f"{torch.get_num_threads()} threads")
    print_markdown([{"seconds": n, **{step: f"{value:.2f}" for step, value in r.items()}} for n, r in rows.items()])


if __name__ == "__main__":
    main()
