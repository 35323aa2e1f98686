"""One scan from file to file, the seconds of each step and the memory; and what each network of stage 2 costs.

    OMP_NUM_THREADS=1 python benchmarks/costs.py --out_dir runs/costs

A synthetic head with skull at 1 mm (.nii.gz), the default grid of 189 x 192 x 192 and a window of 64 x 64 x 64. The
networks have not learned anything: their time does not depend on it. In the place of what an untrained stage 1
proposes, random regions fill `FRACTION` of the brain. Of a network the seconds are those of the processor for one
window.
"""

import time
import timeit
from pathlib import Path

import numpy as np
import torch
from common import argument_parser, draw, peak_memory_gib, print_markdown, timed

from data.files.volumes import write_like
from data.scans.brain import find_brain
from data.scans.checks import find_head, read_lesions, read_scan, space_of
from data.scans.cohort import Case
from data.scans.grid import Grid, own_space
from data.scans.prepared import PreparedScan, place
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer, build_segmenter
from models.segmentation.settings import NETWORKS, ROI_SIZE
from utils.regions.region import Region, expand_region, region_mask

GRID = Grid((1, 189, 192, 192), spacing_mm=(1.0,) * 3)
FRACTION = 0.3  # of the brain that is proposed
REPEATS = 3  # the least seconds of so many runs count


def draw_head(out_dir: Path, spacing_mm: int = 1, n_subjects: int = 1) -> list[Case]:
    more = ["--healthy_fraction", 0, "--ext", ".nii.gz"]
    return draw(out_dir / "cohort", 0, n_subjects, *more, spacing_mm=(spacing_mm,))


def regions_of(scan: PreparedScan) -> list[Region]:
    """Regions about random voxels of the brain, until `FRACTION` of it is proposed."""
    rng, voxels, shape = np.random.default_rng(0), np.argwhere(scan.brain), scan.brain.shape
    regions: list[Region] = []
    while (region_mask(regions, shape) & scan.brain).sum() < FRACTION * len(voxels):
        d, h, w = voxels[rng.integers(len(voxels))].tolist()
        regions.append(expand_region(Region(d, d + 1, w, h, w + 1, h + 1), ROI_SIZE, shape))
    return regions


def run_once(case: Case, rpn: RPN, model: StrokeFormer, out_file: Path) -> dict[str, float]:
    """Seconds of each step."""
    seconds: dict[str, float] = {}
    raw = timed("read", seconds, lambda: read_scan(case))
    head = timed("head", seconds, lambda: find_head(raw, case))
    brain = timed("brain", seconds, lambda: find_brain(raw[0], head, space_of(case)))
    own = own_space(case, GRID.spacing_mm)
    space, mask = GRID.space_about(brain, own), read_lesions(case.lesion_mask)[0]
    scan = timed("preprocess", seconds, lambda: place(case, raw, brain, mask, own, space))
    timed("stage 1", seconds, lambda: rpn.propose(scan, rpn.detect_volume(scan), model.window, 0.01))
    probabilities = timed("stage 2", seconds, lambda: model.segment(scan, regions_of(scan)))
    lesions = timed("own grid", seconds, lambda: scan.to_own_grid(probabilities).argmax(0).astype(np.uint8))
    timed("write", seconds, lambda: write_like(out_file, lesions, case.scan))
    return seconds


def fastest(case: Case, rpn: RPN, model: StrokeFormer, out_file: Path) -> dict[str, str]:
    """Seconds of each step of the fastest run, and of all."""
    runs = [run_once(case, rpn, model, out_file) for _ in range(REPEATS)]
    best = min(runs, key=lambda seconds: sum(seconds.values()))
    return {step: f"{seconds:.2f}" for step, seconds in {**best, "all": sum(best.values())}.items()}


@torch.inference_mode()
def cost_of_network(arch: str) -> dict[str, str]:
    """Parameters, and seconds of a window in both precisions."""
    network, window, seconds = build_segmenter(arch, 1, 2, ROI_SIZE).eval(), torch.rand(1, 1, *ROI_SIZE), []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            timer = timeit.Timer(lambda: network(window), timer=time.process_time)
            seconds.append(min(timer.repeat(REPEATS, number=1)))
    return {
        "--arch": arch,
        "sides of a window": f"multiples of {NETWORKS[arch].stride}",
        "parameters": f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M",
        **dict(zip(("seconds, 32 bit", "seconds, bfloat16"), (f"{s:.3f}" for s in seconds), strict=True)),
    }


def main() -> None:
    out_dir = argument_parser(__doc__).parse_args().out_dir
    (case,) = draw_head(out_dir)
    rpn, model = RPN().eval().to(memory_format=torch.channels_last), StrokeFormer(roi_size=ROI_SIZE).eval()
    row = fastest(case, rpn, model, out_dir / "lesions.nii.gz")
    print_markdown([{"threads": torch.get_num_threads(), **row, "GiB": f"{peak_memory_gib():.2f}"}])
    print_markdown([cost_of_network(arch) for arch in NETWORKS])


if __name__ == "__main__":
    main()
