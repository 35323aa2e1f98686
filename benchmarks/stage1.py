"""Time stage 1 on a volume of the default grid, beside torchvision's Faster R-CNN as it comes.

    python benchmarks/stage1.py

Prints seconds of one run each, on random weights (a trained network passes on fewer boxes, not more), and the ratio.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

sys.path.insert(0, str(Path(__file__).parent.parent))

from data.files.space import Space, resample
from data.phantom.cohort import Settings, make_subject
from data.scans.grid import Grid
from data.scans.head import normalise
from data.scans.prepared import PreparedScan
from models.rpn.module import RPN
from utils.regions.grouped import grouped_regions
from utils.regions.linked import link_boxes

ROI_SIZE = (64, 64, 64)


def prepare_phantom() -> PreparedScan:
    """A synthetic scan at 1 mm on the grid of 189 x 192 x 192."""
    subject = make_subject(Settings(n_subjects=1, healthy_fraction=0), 0)
    own = Space(subject.brain.shape, np.eye(4))
    space = Grid((1, 189, 192, 192)).space_about(subject.brain, own)
    image = resample(normalise(subject.scan, subject.brain) * subject.brain, own, space).astype(np.float16)
    brain, mask = (resample(m[None], own, space)[0] for m in (subject.brain, subject.mask[0] > 0))
    return PreparedScan("phantom", "1", image, brain, mask, space, own, False)


def seconds(function, repeats: int) -> float:
    """Median wall time of `function`, after one run that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    prepared = prepare_phantom()
    slices = [torch.from_numpy(prepared.scan[:, z].astype(np.float32)) for z in range(len(prepared.brain))]
    ours = RPN(evidence_growth=5.0).eval().to(memory_format=torch.channels_last)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, min_size=192).eval()
    # One box a slice, scattered about two places: the most that grouping ever has to cluster.
    corner = np.random.default_rng(0).integers(40, 100, (len(slices), 2))
    boxes = np.concatenate([corner, corner + 30], 1).astype(float)

    @torch.inference_mode()
    def torchvision_default() -> None:
        for image in slices:
            theirs([image.expand(3, -1, -1)])

    scores, places = np.full(len(boxes), 0.5), np.arange(len(boxes))
    linking = seconds(lambda: link_boxes(places, boxes, scores), repeats=9)
    grouping = seconds(lambda: grouped_regions(boxes, prepared.brain, ROI_SIZE), repeats=9)
    stage1 = seconds(lambda: ours.propose(prepared, ours.detect_volume(prepared), ROI_SIZE, 0.01), repeats=3)
    start = time.perf_counter()
    torchvision_default()
    default = time.perf_counter() - start
    print(f"threads                            {torch.get_num_threads()}")
    print(f"linking the boxes of 189 slices    {1000 * linking:8.1f} ms")
    print(f"grouping the boxes of 189 slices   {1000 * grouping:8.1f} ms")
    print(f"stage 1, 189 x 192 x 192           {stage1:8.2f} s")
    print(f"torchvision's default, same slices {default:8.2f} s, {default / stage1:.1f} times as long")


if __name__ == "__main__":
    main()
