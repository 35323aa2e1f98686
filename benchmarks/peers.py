"""StrokeFormer beside what users would take in its place, at equal cost, on the same synthetic heads.

    python benchmarks/peers.py --out_dir runs/peers [--contestants ours segresnet] [--budget quarter] [--table]

Heads with skull at 2 mm: 40 for training, 10 for validation, 60 to test on, and 60 shifted ones with stronger warps and
fainter lesions. Every contestant has the same processor time to train, ``full`` being 90 minutes of two cores. The
scripts of ours count epochs, so theirs are chosen to stay below it, both stages from the 3D scans on; the table says
what each took. What is there already is not repeated, so that calls may run beside each other (with
``OMP_NUM_THREADS=1`` each).

Contestants: ``segresnet`` (`segresnet.py`); ``ours``; and ours with a part taken away or replaced (`OURS`), which shows
what that part brings.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import pandas as pd
import segresnet
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data.files.names import brain_name
from data.files.volumes import write_like
from data.scans.brain import read_brain
from data.scans.checks import read_mask
from data.scans.cohort import BRAINS
from data.scans.prepared import PreparedScan
from models.checkpoints import load_rpn, load_strokeformer
from models.pipeline import TwoStage
from models.regions import rpn_source
from models.segmentation import module as strokeformer
from utils.compare.__main__ import compare
from utils.files import atomic_path, read_json, write_csv, write_json
from utils.progress import progress
from utils.regions.region import write_regions
from utils.scores import intervals
from utils.scores.metrics import scan_scores

N_TEST = 60
SEEDS = {"development": 121, "alike": 122, "shifted": 123}
TESTS = ("alike", "shifted")
SECONDS = {"full": 10800, "half": 5400, "quarter": 2700, "eighth": 1350}  # of processor time for a training
EPOCHS = {"full": (48, 960), "half": (24, 480), "quarter": (12, 240), "eighth": (8, 120)}  # of stage 1 and stage 2
STAGE_1 = ["--dataset_anchors", "auto", "--lr", "1e-3", "--batch_size", 16]
STAGE_2 = ["--max_lr", "2e-3", "--batch_size", 4, "--ema_decay", 0.99]
BOTH = ["--transforms", "flip", "affine", "contrast", "lesion_contrast", "--offline", "--num_samples", 0]
SCORES = [
    *["dice", "lesion_f1_isles", "dice_with_lesions", "lesion_f1_atlas"],
    *["lesion_recall_isles", "false_lesions_isles", "hd95"],
]
TIMED = 5  # scans of which the seconds a volume are the mean


@dataclass(frozen=True)
class Ours:
    """Our pipeline, or what is left of it.

    true_boxes: regions around the lesions in place of proposed ones: what is left when stage 1 errs no more.
    identity: no transformer in the network of stage 2.
    """

    true_boxes: bool = False
    identity: bool = False


OURS = {"ours": Ours(), "true_boxes": Ours(true_boxes=True), "identity": Ours(identity=True)}
CONTESTANTS = [*OURS, "segresnet"]
Predict = Callable[[PreparedScan], np.ndarray]  # from a prepared scan to its lesions, (D, H, W) bool on its own grid


# --- cohorts -------------------------------------------------------------------------------------------


def draw_cohorts(out_dir: Path) -> None:
    common.draw_development(out_dir, SEEDS["development"])
    common.draw(out_dir / "alike", SEEDS["alike"], N_TEST)
    common.draw(out_dir / "shifted", SEEDS["shifted"], N_TEST, *common.SHIFT)
    for part in ("train", "val", *TESTS):
        find_brains(out_dir / part)


def find_brains(folder: Path) -> None:
    """Find the brains of a cohort once for all contestants, and leave them where every script looks for them."""
    cohort = common.opened(folder)
    for case in progress(cohort.cases, "Finding brains"):
        path = folder / BRAINS / brain_name(case.scan)
        if not path.exists():
            write_like(path, read_brain(case, cohort.brains).astype(np.uint8), case.scan)


def prepared(folder: Path) -> list[PreparedScan]:
    cohort = common.opened(folder)
    return [cohort.prepare(case) for case in progress(cohort.cases, "Preparing")]


# --- training ------------------------------------------------------------------------------------------


def train_stage_1(train: Path, val: Path, run_dir: Path, epochs: int, seed: int) -> Path:
    """The checkpoint of stage 1, trained once for all contestants of ours."""
    data = common.training_data(common.cut(train), common.cut(val))
    common.run(
        *["train_rpn.py", *data, *common.ROI, *STAGE_1, *BOTH],
        *["--max_epochs", epochs, "--patience", epochs, "--seed", seed],
        *["--model_prefix", "rpn", "--default_root_dir", run_dir],
    )
    return run_dir / "rpn/checkpoints/best.ckpt"


def train_ours(out_dir: Path, run_dir: Path, name: str, budget: str, seed: int) -> None:
    train, val, (rpn_epochs, epochs) = out_dir / "train", out_dir / "val", EPOCHS[budget]
    if OURS[name].true_boxes:
        boxes = {scan.name: common.true_regions(scan) for folder in (train, val) for scan in prepared(folder)}
        write_regions(run_dir / "true.json", boxes)
        regions = ["--regions", run_dir / "true.json"]
    else:
        regions = ["--rpn_ckpt_path", train_stage_1(train, val, run_dir, rpn_epochs, seed)]
    train_stage_2(
        OURS[name],
        *[*common.training_data(train, val), *common.SCAN_DIM, *common.ROI, *STAGE_2, *BOTH, *regions, "--seed", seed],
        *["--max_epochs", epochs, "--patience", epochs, "--model_prefix", name, "--default_root_dir", run_dir],
    )


def train_stage_2(variant: Ours, *command) -> None:
    """``train_strokeformer.py``, in this process, so that its network can be another one."""
    import train_strokeformer as script

    if variant.identity:
        leave_transformers_out()
    script.main(script.parse_args([str(word) for word in command]))


def leave_transformers_out() -> None:
    """From now on, networks of stage 2 have the identity in the place of every transformer."""
    build_segmenter = strokeformer.build_segmenter

    def built(*arguments) -> nn.Module:
        network = build_segmenter(*arguments)
        for part in [m for m in network.modules() if hasattr(m, "transformer")]:
            part.transformer = nn.Identity()
        return network

    strokeformer.build_segmenter = built


def train_contestant(out_dir: Path, run_dir: Path, name: str, budget: str, seed: int) -> None:
    """Train and note the processor time that it took; of stage 1 as well, where it is not trained already."""
    before = common.processor_seconds()
    if name in OURS:
        train_ours(out_dir, run_dir, name, budget, seed)
    else:
        network = segresnet.train(prepared(out_dir / "train"), SECONDS[budget], seed)
        with atomic_path(run_dir / f"{name}.pt") as temporary:
            torch.save(network.state_dict(), temporary)
    write_json(run_dir / f"{name}.json", {"seconds": common.processor_seconds() - before})


# --- testing -------------------------------------------------------------------------------------------


def load_ours(run_dir: Path, name: str) -> tuple[Predict, int]:
    """How it predicts, and its number of parameters."""
    variant = OURS[name]
    if variant.identity:
        leave_transformers_out()
    model = load_strokeformer(run_dir / name / "checkpoints/best.ckpt")
    rpn = None if variant.true_boxes else load_rpn(run_dir / "rpn/checkpoints/best.ckpt")
    regions_of = rpn_source(rpn, common.ROI_SIZE) if rpn else common.true_regions
    pipeline = TwoStage(model, regions_of)
    return lambda scan: pipeline.predict(scan).lesions, size_of(model) + (size_of(rpn) if rpn else 0)


def load_peer(run_dir: Path) -> tuple[Predict, int]:
    """As `load_ours`."""
    network = segresnet.build()
    network.load_state_dict(torch.load(run_dir / "segresnet.pt", weights_only=True))
    network.eval()
    return lambda scan: scan.to_own_grid(segresnet.segment(network, scan)).argmax(0) > 0, size_of(network)


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_contestant(out_dir: Path, run_dir: Path, name: str) -> None:
    """Scores per scan of both test cohorts; seconds and memory of the first scans."""
    predict, parameters = load_ours(run_dir, name) if name in OURS else load_peer(run_dir)
    for test in TESTS:
        rows, seconds, scans = [], [], prepared(out_dir / test)
        for case, scan in zip(common.opened(out_dir / test).cases, progress(scans, f"Testing {name}"), strict=True):
            started = time.perf_counter()
            lesions = predict(scan)
            seconds.append(time.perf_counter() - started)
            scores = scan_scores(lesions, read_mask(case), (float(common.SPACING_MM),) * 3)
            rows.append({"model_name": name, "scan": case.name, **scores})
        write_csv(run_dir / f"{name}_{test}.csv", pd.DataFrame(rows))
    with FlopCounterMode(display=False) as counter:
        predict(scans[0])
    cost = {
        "parameters": parameters,
        "gflop": counter.get_total_flops() / 1e9,
        "seconds_a_volume": float(np.mean(seconds[1 : 1 + TIMED])),
        "peak_memory_gib": common.peak_memory_gib(),
    }
    write_json(run_dir / f"{name}.json", {**read_json(run_dir / f"{name}.json"), **cost})


# --- tables --------------------------------------------------------------------------------------------


def print_tables(out_dir: Path, run_dir: Path) -> None:
    for test in TESTS:
        voxels = pd.read_csv(out_dir / test / "cohort.csv").set_index("scan").lesion_voxels
        paths = sorted(run_dir.glob(f"*_{test}.csv"))
        tables = {path.name.removesuffix(f"_{test}.csv"): read_scores(path, voxels) for path in paths}
        rows = [row_of(name, table, tables.get("ours"), run_dir) for name, table in tables.items()]
        print(f"\n{test}, {N_TEST} scans; [95 % bootstrap interval]; ours minus the other [paired], p by Wilcoxon")
        common.print_markdown(rows)


def read_scores(path: Path, voxels: pd.Series) -> pd.DataFrame:
    """Scores with one more: the Dice of scans with lesions. Among all, a scan without any has 0 or 1."""
    table = pd.read_csv(path)
    return table.assign(dice_with_lesions=table.dice.where(table.scan.map(voxels) > 0))


def row_of(name: str, table: pd.DataFrame, ours: pd.DataFrame | None, run_dir: Path) -> dict:
    cost, means = read_json(run_dir / f"{name}.json"), intervals.means(table[SCORES], seed=0)
    row = {"contestant": name, **{s: f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]" for s, e in means.items()}}
    if ours is not None and name != "ours":
        pair = (t.set_index("scan").loc[table.scan, SCORES[:2]] for t in (table, ours))
        for change in compare(*pair, seed=0).itertuples():
            row[f"{change.score}, ours better by"] = (
                f"{change.difference:+.3f} [{change.low:+.3f}, {change.high:+.3f}], p {change.p:.2g}"
            )
    return {
        **row,
        "s a volume": f"{cost['seconds_a_volume']:.2f}",
        "GiB": f"{cost['peak_memory_gib']:.2f}",
        "GFLOP a volume": f"{cost['gflop']:.0f}",
        "M parameters": f"{cost['parameters'] / 1e6:.2f}",
        "CPU min of training": f"{cost['seconds'] / 60:.0f}",
    }


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--budget", choices=EPOCHS, default="full")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--part", choices=["train", "test"], default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    out_dir, budget, seed = args.out_dir.absolute(), args.budget, args.seed
    run_dir = out_dir / f"{budget}_seed-{seed}"
    if args.part == "train":  # a process of its own, whose time and memory are the contestant's
        return train_contestant(out_dir, run_dir, *args.contestants, budget, seed)
    if args.part == "test":
        return test_contestant(out_dir, run_dir, *args.contestants)
    if not args.table:
        draw_cohorts(out_dir)
        for name in args.contestants:
            same = ["--out_dir", out_dir, "--contestants", name, "--budget", budget, "--seed", seed]
            for part, result in (("train", f"{name}.json"), ("test", f"{name}_shifted.csv")):
                if not (run_dir / result).exists():
                    common.run(__file__, *same, "--part", part)
    print_tables(out_dir, run_dir)


if __name__ == "__main__":
    main()
