"""What segmenting the regions of a scan costs, against MONAI's sliding window in one region after the other.

    python benchmarks/inference.py

The scan is noise in an ellipsoid of the size of a brain at 2 mm, and the network has not learned anything: the time
depends on neither. Three regions overlap, as those of neighbouring lesions do.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.files.nifti import affine_of
from data.files.space import Space
from data.scans.prepared import PreparedScan
from models.segmentation.module import StrokeFormer
from models.segmentation.windows import DEFAULT_OVERLAP
from utils.regions.region import Region, whole_volume

SHAPE, ROI, BATCH = (94, 98, 116), (32, 32, 32), 8
CASES = {
    "a region of one window": [Region(30, 62, 40, 30, 72, 62)],
    "three that overlap": [
        Region(20, 62, 30, 20, 80, 66),
        Region(30, 62, 40, 30, 72, 62),
        Region(36, 80, 24, 40, 70, 90),
    ],
    "three of one window": [
        Region(30, 62, 40, 30, 72, 62),
        Region(34, 66, 44, 30, 76, 62),
        Region(38, 70, 52, 38, 84, 70),
    ],
    "the whole volume": [whole_volume(SHAPE)],
}


def draw() -> PreparedScan:
    centre = np.array(SHAPE)[:, None, None, None] / 2
    brain = (((np.indices(SHAPE) - centre) / (0.8 * centre)) ** 2).sum(0) < 1
    scan = (np.random.default_rng(0).random((1, *SHAPE)) * brain).astype(np.float16)
    space = Space(SHAPE, affine_of((2, 2, 2)))
    return PreparedScan("drawn", "1", scan, brain, None, space, space, True)


@torch.inference_mode()
def region_by_region(model: StrokeFormer, scan: PreparedScan, regions: list[Region]) -> np.ndarray:
    """Probabilities (K, D, H, W) of MONAI's sliding window in 32 bit, averaged over the regions."""
    summed, times = np.zeros((2, *SHAPE), np.float32), np.zeros(SHAPE, np.float32)
    for region in regions:
        image = torch.from_numpy(scan.scan[(slice(None), *region.slices)].astype(np.float32))[None]
        logits = sliding_window_inference(image, ROI, BATCH, model, DEFAULT_OVERLAP, mode="gaussian")
        summed[(slice(None), *region.slices)] += logits.softmax(1)[0].numpy()
        times[region.slices] += 1
    return np.divide(summed, times, out=summed, where=times > 0)


def cost(model: StrokeFormer, segment: Callable[[], np.ndarray]) -> str:
    """Windows and the least processor time of three calls."""
    windows, seconds = [], []
    hook = model.net.register_forward_hook(lambda net, inputs, logits: windows.append(len(logits)))
    for _ in range(3):
        windows.clear()
        start = time.process_time()
        segment()
        seconds.append(time.process_time() - start)
    hook.remove()
    return f"{sum(windows):4d} windows {min(seconds):6.2f} s"


def main() -> None:
    torch.manual_seed(0)
    model, scan = StrokeFormer(roi_size=ROI).eval(), draw()
    for name, regions in CASES.items():
        before = cost(model, lambda listed=regions: region_by_region(model, scan, listed))
        now = cost(model, lambda listed=regions: model.segment(scan, listed, batch_size=BATCH))
        print(f"{name:24} region by region {before}   now {now}")


if __name__ == "__main__":
    main()
