"""Exported models beside PyTorch: do both say the same, how long do they take, and how large is the folder?

    python benchmarks/export.py --out_dir runs/export --rpn_ckpt_path demo/RPN/demo_fold-0/checkpoints/best.ckpt \\
        --ckpt_path demo/StrokeFormer/demo_fold-0/checkpoints/best.ckpt

Synthetic scans of the networks' voxel size with their true brains go through both stages, one engine after the other on
each scan, in one process and with as many threads each: PyTorch in float32, which is what the others are held against,
PyTorch as it runs on this processor (bfloat16 where that has it), and onnxruntime with weights in float32 and float16.
Seconds are those of both stages alone: all engines share what lies before and behind.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import models.precision
from benchmarks.peers import print_markdown
from benchmarks.proposals import run
from data.scans.brain import with_brains
from data.scans.checks import read_mask
from data.scans.cohort import Case, pair_cases
from data.scans.prepared import PreparedScan, prepare_scan
from models.checkpoints import load_rpn, load_strokeformer
from models.export.exported import read_model
from models.proposals import rpn_source
from models.segmentation.windows import seen_on_own_grid
from runner.model import load_runner
from utils.cli import positive_int
from utils.defaults import SUBVOLUME_DEPTH
from utils.files import write_json
from utils.regions.region import Region
from utils.scores.overlap import count_overlap, overlap_scores

SEED, BATCH = 41, 8
REFERENCE, WEIGHTS = "torch, float32", {"float32": [], "float16": ["--fp16"]}


class Answer(NamedTuple):
    """What an engine says of a scan: the probability of lesion on the networks' grid, the mask (D, H, W) bool on the
    scan's own, and the seconds that it took."""

    lesion: np.ndarray
    mask: np.ndarray
    seconds: float


Engine = Callable[[PreparedScan], Answer]


def draw(out_dir: Path, n_volumes: int, spacing_mm: tuple[float, ...]) -> list[Case]:
    """Cases of a synthetic cohort with their true brains, drawn unless it is there."""
    cohort = out_dir / f"cohort-{n_volumes}"
    if not cohort.exists():
        size = ["--n_subjects", n_volumes, "--seed", SEED, "--ext", ".nii.gz", "--spacing", *spacing_mm]
        run("-m", "data.phantom", "--out_dir", cohort, *size)
    cases = pair_cases([cohort / "Scans"], [cohort / "Masks"])
    return with_brains(cases, [cohort / "TrueBrains"])


# --- engines -------------------------------------------------------------------------------------------


def engine(propose: Callable, segment: Callable, decision) -> Engine:
    def answer(scan: PreparedScan) -> Answer:
        started = time.perf_counter()
        regions = propose(scan)
        probabilities = segment(scan, regions)
        seconds = time.perf_counter() - started
        seen = seen_on_own_grid(scan, regions)
        mask = decision.classes(scan.to_own_grid(probabilities), scan.own.spacing_mm, seen) > 0
        return Answer(1 - probabilities[0], mask, seconds)

    return answer


def torch_engine(args: argparse.Namespace) -> Engine:
    rpn, model = load_rpn(args.rpn_ckpt_path).cpu(), load_strokeformer(args.ckpt_path).cpu()

    def segment(scan: PreparedScan, regions: list[Region]) -> np.ndarray:
        return model.segment(scan, regions, None, SUBVOLUME_DEPTH, BATCH)

    return engine(rpn_source(rpn, model.hparams.roi_size), segment, model.decision)


def exported_engine(folder: Path) -> Engine:
    runner = load_runner(folder, read_model(folder), torch.get_num_threads())
    return engine(runner.propose, lambda scan, regions: runner.segment(scan, regions, BATCH), runner.decision)


@contextmanager
def in_float32():
    """No bfloat16 in PyTorch, whatever the processor has."""
    has_bfloat16 = models.precision.has_bfloat16
    models.precision.has_bfloat16 = lambda device: False
    yield
    models.precision.has_bfloat16 = has_bfloat16


def within_float32(answer: Engine) -> Engine:
    def answer_in_float32(scan: PreparedScan) -> Answer:
        with in_float32():
            return answer(scan)

    return answer_in_float32


# --- measures ------------------------------------------------------------------------------------------


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(overlap_scores(*count_overlap(one, other), 0)["dice"])


def compare(answer: Answer, reference: Answer, truth: np.ndarray) -> dict[str, float]:
    return {
        "seconds": answer.seconds,
        "probability": float(np.abs(answer.lesion - reference.lesion).max()),
        "masks": 1 - dice(answer.mask, reference.mask),
        "dice": abs(dice(answer.mask, truth) - dice(reference.mask, truth)),
        "voxels": int(answer.mask.sum()),
    }


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rpn_ckpt_path", required=True)
    parser.add_argument("--ckpt_path", required=True)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--n_volumes", type=positive_int, default=20)
    args = parser.parse_args()
    out_dir, folders = args.out_dir.absolute(), {}
    for weights, flags in WEIGHTS.items():
        folder = folders[f"onnxruntime, {weights}"] = out_dir / weights
        given = ["--rpn_ckpt_path", Path(args.rpn_ckpt_path).absolute(), "--ckpt_path", Path(args.ckpt_path).absolute()]
        run("-m", "models.export", *given, "--out_dir", folder, *flags)
    torch_as_it_runs = torch_engine(args)
    engines = {REFERENCE: within_float32(torch_as_it_runs), "torch, as it runs here": torch_as_it_runs}
    engines |= {name: exported_engine(folder) for name, folder in folders.items()}
    rows = measure(engines, args, out_dir)
    write_json(out_dir / "export.json", rows)
    print_table(rows, folders)


def measure(engines: dict[str, Engine], args: argparse.Namespace, out_dir: Path) -> dict[str, list[dict]]:
    """What `compare` says of each scan, by engine; each has seen the first scan once before."""
    grid = read_model(out_dir / "float32").grid
    rows = {name: [] for name in engines}
    for i, case in enumerate(draw(out_dir, args.n_volumes, grid.spacing_mm)):
        scan, truth = prepare_scan(case, grid, out_dir / "none are found"), read_mask(case)
        if i == 0:
            for answer in engines.values():
                answer(scan)
        answers = {name: answer(scan) for name, answer in engines.items()}
        for name, answer in answers.items():
            rows[name].append({"scan": case.name, **compare(answer, answers[REFERENCE], truth)})
    return rows


def print_table(rows: dict[str, list[dict]], folders: dict[str, Path]) -> None:
    table = []
    for name, scans in rows.items():
        worst = {key: max(scan[key] for scan in scans) for key in ("probability", "masks", "dice")}
        table.append(
            {
                "engine": name,
                "seconds a volume": f"{np.mean([scan['seconds'] for scan in scans]):.3f}",
                "largest difference of probability": f"{worst['probability']:.1e}",
                "largest 1 - Dice to the reference's mask": f"{worst['masks']:.1e}",
                "largest difference of Dice": f"{worst['dice']:.1e}",
                "MB": f"{megabytes(folders[name]):.1f}" if name in folders else "",
            }
        )
    found = [scan["voxels"] for scan in rows[REFERENCE]]
    print(f"{len(found)} scans, {np.count_nonzero(found)} with a prediction, {torch.get_num_threads()} threads")
    print_markdown(table)


if __name__ == "__main__":
    main()
