"""What the networks of stage 2 cost: parameters, and processor time of a window of 64 x 64 x 64.

OMP_NUM_THREADS=1 python benchmarks/segmenters.py
"""

import argparse
import time
import timeit

import torch
from common import print_markdown

from models.segmentation.module import build_segmenter
from models.segmentation.settings import NETWORKS, ROI_SIZE

REPEATS = 3  # the least seconds of so many windows


@torch.inference_mode()
def cost(arch: str) -> dict[str, str]:
    network, window, seconds = build_segmenter(arch, 1, 2, ROI_SIZE).eval(), torch.rand(1, 1, *ROI_SIZE), []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            timer = timeit.Timer(lambda: network(window), timer=time.process_time)
            seconds.append(min(timer.repeat(REPEATS, number=1)))
    return {
        "--arch": arch,
        "sides of a window": f"multiples of {NETWORKS[arch].stride}",
        "parameters": f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M",
        "seconds, 32 bit": f"{seconds[0]:.3f}",
        "seconds, bfloat16": f"{seconds[1]:.3f}",
    }


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print_markdown([cost(arch) for arch in NETWORKS])
