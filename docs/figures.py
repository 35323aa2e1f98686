"""Draw the pictures of the README and of the reports.

    python docs/figures.py            # all; those of the README come from a run of ``make demo``
    python docs/figures.py --reports  # only ablation.png, from the tables of docs/proposals.md

The scan shown is the test scan of the first fold whose Dice is the median of those with a lesion of at least 1 cm3.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data.files.names import stem_of
from data.files.volumes import volume_shape
from data.scans.cohort import Case, pair_cases
from data.scans.grid import Grid
from data.scans.prepared import PreparedScan, prepare_scan
from models.checkpoints import load_rpn
from models.rpn.module import RPN
from utils.plots import DETECTION, PREDICTION, REGION, TARGET, save_figure
from utils.regions.linked import LOWEST_SCORE
from utils.regions.region import Region, read_regions
from utils.regions.rules import Kept

ROI_SIZE = (24, 24, 24)  # of make demo
DEMO, DOCS, COHORT = ROOT / "demo", ROOT / "docs", ROOT / "data/demo"
COLORS = ("0.6", PREDICTION, DETECTION, TARGET)  # of the rows of a table, the last the advised
MARKERS = ("o", "s", "^", "D")
BAR = 0.27  # width, with room between three

# --- the README ----------------------------------------------------------------------------------------


def choose_case() -> Case:
    scores = pd.read_csv(DEMO / "scores/per_scan_scores.csv").query("model_name == 'demo_fold-0'")
    volumes = pd.read_csv(COHORT / "cohort.csv").set_index("scan").lesion_cm3
    shown = scores[scores.scan.map(volumes) >= 1].sort_values("dice")
    name = shown.scan.iloc[len(shown) // 2]
    return next(case for case in pair_cases([COHORT / "Scans"], [COHORT / "Masks"]) if case.name == name)


def draw_method(scan: PreparedScan, model: RPN, regions: list[Region], prediction: np.ndarray) -> Figure:
    figure = Figure(figsize=(15, 4.4), dpi=110, layout="compressed")
    panels = figure.subplots(1, 4)
    detections = model.detect_volume(scan)
    z = int(scan.mask.sum((1, 2)).argmax())
    x = int(scan.mask.sum((0, 2)).argmax())
    draw_detections(panels[0], scan, z, detections[z])
    draw_links(panels[1], scan, x, detections, model.keep(scan, detections, ROI_SIZE))
    draw_regions(panels[2], scan, x, regions)
    draw_segmentation(panels[3], scan, z, prediction)
    titles = (
        "1  detect in every slice",
        "2  link over neighbouring slices",
        "3  grow to the window",
        "4  segment only there",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=13)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def draw_detections(axes, scan: PreparedScan, z: int, found: dict) -> None:
    show(axes, scan.scan[0, z])
    for box, score in zip(found["boxes"].numpy(), found["scores"].numpy(), strict=True):
        rectangle(axes, box[1], box[0], box[3], box[2], edgecolor=DETECTION, linestyle="--", alpha=0.3 + 0.7 * score)
    axes.contour(scan.mask[z].T, [0.5], colors=TARGET, linewidths=1.2)
    axes.set_xlabel("lesion (green), detections (blue)")


def draw_links(axes, scan: PreparedScan, x: int, detections: dict[int, dict], kept: Kept) -> None:
    show(axes, scan.scan[0, :, x].T)
    for z, found in detections.items():
        for left, _, right, _ in found["boxes"].numpy()[found["scores"].numpy() >= LOWEST_SCORE]:
            axes.plot([left, right], [z, z], color="0.6", linewidth=1)
        for left, _, right, _ in kept.in_slice(z):
            axes.plot([left, right], [z, z], color=DETECTION, linewidth=1.5)
    axes.set_xlabel("sagittal: enough evidence (blue) or not (grey)")


def draw_regions(axes, scan: PreparedScan, x: int, regions: list[Region]) -> None:
    show(axes, scan.scan[0, :, x].T)
    axes.contour(scan.mask[:, x], [0.5], colors=TARGET, linewidths=1.2)
    for r in regions:
        rectangle(axes, r.xmin, r.region_start, r.xmax, r.region_end, edgecolor=REGION, linewidth=1.8)
    axes.set_xlabel("sagittal: proposed regions (yellow)")


def draw_segmentation(axes, scan: PreparedScan, z: int, prediction: np.ndarray) -> None:
    show(axes, scan.scan[0, z])
    axes.contourf(prediction[z].T, [0.5, 1.5], colors=PREDICTION, alpha=0.55)
    axes.contour(scan.mask[z].T, [0.5], colors=TARGET, linewidths=1.2)
    axes.set_xlabel("prediction (orange), lesion (green)")


def show(axes, image: np.ndarray) -> None:
    axes.imshow(image.astype(np.float32).T, cmap="gray", vmin=0, vmax=1, origin="lower")


def rectangle(axes, left, bottom, right, top, **style) -> None:
    axes.add_patch(Rectangle((left - 0.5, bottom - 0.5), right - left, top - bottom, facecolor="none", **style))


def draw_demo() -> None:
    case = choose_case()
    scan = prepare_scan(case, Grid((1, *volume_shape(case.scan))), DEMO / "StrokeFormer/demo/cache/brains")
    model = load_rpn(DEMO / "RPN/demo_fold-0/checkpoints/best.ckpt")
    regions = read_regions(DEMO / "StrokeFormer/demo/regions_fold-0.json")[case.name]
    results = DEMO / "scores/demo_fold-0"
    stored = np.load(results / "predictions" / f"{case.stem}_prediction.npy", allow_pickle=False)
    save_figure(draw_method(scan, model, regions, stored[0].transpose(2, 0, 1)), DOCS / "method.png")
    shutil.copy(results / "predictions" / f"{case.stem}.png", DOCS / "prediction.png")
    shutil.copy(results / "gradcam" / f"{case.stem}.png", DOCS / "gradcam.png")
    proposals = DEMO / "rpn_scores/demo_fold-0/predictions"
    shutil.copy(next(proposals.glob(f"{stem_of(case.name)}_slice-*.png")), DOCS / "proposals.png")
    shutil.copy(DEMO / "RPN/demo_fold-0/calibration.png", DOCS / "calibration.png")


# --- the reports ---------------------------------------------------------------------------------------


def read_table(heading: str) -> pd.DataFrame:
    """The first table under a heading of docs/proposals.md, its cells as text."""
    section = (DOCS / "proposals.md").read_text().split(f"# {heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()
    columns, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return pd.DataFrame(rows, columns=columns)


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.?\d*", cell)]


def draw_ablation() -> Figure:
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    results = read_table("Result on twelve cohorts").set_index("cohort")
    variants = read_table("What each strategy brings")
    titles = {"alike": "test subjects drawn alike", "shifted": "shifted test subjects"}
    for axes, (cohort, title) in zip(panels[:2], titles.items(), strict=True):
        draw_variants(axes, variants[variants.cohort == cohort], results.loc["wanted"])
        axes.set_title(title, loc="left")
    panels[0].legend(loc="lower right")
    draw_copies(panels[2], read_table("Copies or longer training alone").set_index("copies"), results["under 1 cm3"])
    return figure


def draw_variants(axes, rows: pd.DataFrame, wanted: pd.Series) -> None:
    """Lesion recall against proposed fraction, mean and deviation over seeds, and where both are as wanted."""
    (least,), (most,) = numbers(wanted.recall), numbers(wanted.fraction)
    axes.add_patch(Rectangle((0, least), most, 1 - least, facecolor="0.9", zorder=0))
    axes.text(0.01, least + 0.003, "wanted", color="0.4")
    for row, color, marker in zip(rows.itertuples(), COLORS, MARKERS, strict=True):
        (x, dx), (y, dy) = numbers(row.fraction), numbers(row.recall)
        axes.errorbar(x, y, dy, dx, color=color, marker=marker, markersize=8, capsize=3, label=row.variant)
    axes.set(xlim=(0, 1.05), ylim=(0.72, 1.02), xlabel="proposed fraction", ylabel="lesion recall")


def draw_copies(axes, rows: pd.DataFrame, n_small: pd.Series) -> None:
    """Recall of lesions under 1 cm3 in each cohort, by the copies that the network learned from."""
    cohorts = rows.columns.drop("fraction")
    colors = (COLORS[0], *COLORS[-2:])
    for i, ((copies, cells), color) in enumerate(zip(rows[cohorts].iterrows(), colors, strict=True)):
        recalls = [numbers(cell)[1] if cell else np.nan for cell in cells]
        axes.bar(np.arange(len(cohorts)) + (i - 1) * BAR, recalls, BAR, color=color, label=copies)
    labels = [f"{cohort.replace(', ', chr(10))}\n({n_small[cohort]})" for cohort in cohorts]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(
        ylim=(0, 1.2),
        yticks=np.linspace(0, 1, 6),
        ylabel="recall of lesions under 1 cm3",
        xlabel="test cohort (its lesions under 1 cm3)",
    )
    axes.set_title("same steps, by copies of the training scans", loc="left")
    axes.legend(loc="upper center", ncols=len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", action="store_true", help="only the pictures of the reports, which need no demo")
    args = parser.parse_args()
    save_figure(draw_ablation(), DOCS / "ablation.png")
    if not args.reports:
        draw_demo()


if __name__ == "__main__":
    main()
