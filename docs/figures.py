"""Draw the pictures of README and docs/ from ``make demo``: the scan of median Dice of those drawn in fold 0."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.scans.cohort import pair_cases
from data.scans.prepared import PreparedScan, prepare_scan
from models.checkpoints import load_rpn
from models.rpn.module import RPN
from utils.plots import DETECTION, PREDICTION, REGION, TARGET, save_figure
from utils.regions.region import read_regions

DOCS, DEMO, COHORT, FOLD = ROOT / "docs", ROOT / "demo", ROOT / "data/demo", "demo_fold-0"
TITLES = ("1  detect (blue)", "2  link over slices", "3  grow to windows (yellow)", "4  segment (true: green)")


def draw_method(scan: PreparedScan, model: RPN, regions: list, lesions: np.ndarray) -> Figure:
    figure, detections = Figure(figsize=(15, 4.4), layout="compressed"), model.detect_volume(scan)
    linked, panels = model.keep(detections), figure.subplots(1, 4)
    z, x = (int(scan.mask.sum(others).argmax()) for others in ((1, 2), (0, 2)))
    axial, sagittal = (scan.scan[0, z].T, scan.mask[z].T), (scan.scan[0, :, x], scan.mask[:, x])
    for axes, title, (image, mask) in zip(panels, TITLES, (axial, sagittal, sagittal, axial), strict=True):
        axes.imshow(image.astype(np.float32), cmap="gray", vmin=0, vmax=1, origin="lower")
        axes.contour(mask, [0.5], colors=TARGET, linewidths=1.2)
        axes.set_title(title, loc="left", fontsize=13)
        axes.set_axis_off()
    for left, bottom, right, top in detections[z]["boxes"].numpy():
        outline(panels[0], bottom, left, top, right, DETECTION)
    for left, _, right, _, start in np.column_stack([linked.boxes, linked.slices]):
        outline(panels[1], left, start, right, start + 1, DETECTION)
    for r in regions:
        outline(panels[2], r.xmin, r.region_start, r.xmax, r.region_end, REGION)
    panels[3].contourf(lesions[z].T, [0.5, 1.5], colors=PREDICTION, alpha=0.55)
    return figure


def outline(axes, left: float, bottom: float, right: float, top: float, color: str) -> None:
    x, y = np.array([[left, right, right, left, left], [bottom, bottom, top, top, bottom]]) - 0.5
    axes.plot(x, y, color=color, linewidth=1.2)


def main() -> None:
    results = DEMO / "scores" / FOLD
    dice = pd.read_csv(DEMO / "scores/per_scan_scores.csv").set_index("scan").dice
    volumes = pd.read_csv(COHORT / "cohort.csv").set_index("scan").lesion_cm3
    cases = [case for case in pair_cases([COHORT / "Scans"], [COHORT / "Masks"]) if volumes[case.name] >= 1]
    drawn = [case for case in cases if (results / "gradcam" / f"{case.stem}.png").exists()]
    case = sorted(drawn, key=lambda case: dice[case.name])[len(drawn) // 2]
    model = load_rpn(DEMO / "RPN" / FOLD / "checkpoints/best.ckpt")
    scan = prepare_scan(case, model.grid, DEMO / "StrokeFormer/demo/cache/brains")
    lesions = np.load(results / "predictions" / f"{case.stem}_prediction.npy")[0].transpose(2, 0, 1)
    regions = read_regions(results / "regions.json")[case.name]
    save_figure(draw_method(scan, model, regions, lesions), DOCS / "method.png")
    shutil.copy(results / "predictions" / f"{case.stem}.png", DOCS / "prediction.png")
    shutil.copy(results / "gradcam" / f"{case.stem}.png", DOCS / "gradcam.png")
    shutil.copy(next((DEMO / "rpn_scores" / FOLD / "predictions").glob(f"{case.stem}_*.png")), DOCS / "proposals.png")
    shutil.copy(DEMO / "RPN" / FOLD / "calibration.png", DOCS / "calibration.png")


if __name__ == "__main__":
    main()
