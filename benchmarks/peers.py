"""StrokeFormer beside what users would take in its place, at equal cost, on the same synthetic heads.

    python benchmarks/peers.py --out_dir runs/peers                                # all contestants, then the table
    python benchmarks/peers.py --out_dir runs/peers --contestants ours segresnet   # some of them
    python benchmarks/peers.py --out_dir runs/peers --budget quarter               # with less training
    python benchmarks/peers.py --out_dir runs/peers --table                        # print what is there

Heads with skull at 2 mm: 40 for training, 10 for validation, 60 to test on, and 60 shifted ones with stronger warps and
fainter lesions. Every contestant has the same processor time to train, ``full`` being 90 minutes of two cores. The
scripts of ours count epochs, so theirs are chosen to stay below it, both stages from the 3D scans on; the table tells
what each took. What is there already is not repeated, so that calls may run beside each other (with
``OMP_NUM_THREADS=1`` each).

Contestants: ``ours``; ours with a part taken away, added or replaced (`OURS`), which shows what that part brings; and
`whole_volume.PEERS`.
"""

import argparse
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.ablated import NETWORKS
from benchmarks.proposals import GRID, ROI, ROI_SIZE, SHIFT, draw, link, link_cases, run
from benchmarks.whole_volume import PEERS, segment, train
from data.files.names import brain_name
from data.files.volumes import write_like
from data.scans.brain import read_brain, with_brains
from data.scans.checks import read_mask
from data.scans.cohort import BRAINS, pair_cases
from data.scans.grid import Grid
from data.scans.prepared import PreparedScan, cached_scan
from models.checkpoints import load_rpn, load_strokeformer
from models.proposals import rpn_source
from models.segmentation.windows import seen_on_own_grid
from utils.compare.__main__ import compare
from utils.files import atomic_path, read_json, write_json
from utils.progress import progress
from utils.regions.region import Region, expand_region, region_of, write_regions
from utils.scores import intervals
from utils.scores.decision import Decision
from utils.scores.metrics import scan_scores

N_TRAIN, N_VAL, N_TEST = 40, 10, 60
SEEDS = {"development": 121, "alike": 122, "shifted": 123}
SECONDS = {"full": 10800, "half": 5400, "quarter": 2700, "eighth": 1350}  # of processor time for a training
# Of stage 1 and of stage 2, over the scans of ``train`` alone: with copies an epoch is as much longer.
EPOCHS = {"full": (48, 960), "half": (24, 480), "quarter": (12, 240), "eighth": (8, 120)}
STAGE_1 = ["--dataset_anchors", "auto", "--lr", "1e-3", "--batch_size", "16"]
STAGE_2 = ["--max_lr", "2e-3", "--batch_size", "4", "--ema_decay", "0.99"]
TRANSFORMS = ["--transforms", "flip", "affine", "contrast", "lesion_contrast"]
WHOLE = 30  # windows that see a volume, for each that sees its regions
COPIES = 3  # of each training scan, with a lesion of another
TRANSFER = ["--mode", "volume", "--lesions", 1, "--rim", 0, "--seed", 1]
SCORES = [
    *["dice", "lesion_f1_isles", "dice_with_lesions", "lesion_f1_atlas"],
    *["lesion_recall_isles", "false_lesions_isles", "hd95"],
]
TIMED = 5  # scans of which the seconds a volume are the mean


@dataclass(frozen=True)
class Ours:
    """Our pipeline, or what is left of it.

    boxes: ``proposed``; ``true`` ones around the lesions, what is left when stage 1 errs no more; or ``whole`` for our
        network of stage 2 over the whole volume.
    network: in the place of that of stage 2, a key of `ablated.NETWORKS`.
    copies: of each training scan, with transferred lesions.
    arguments: more of ``train_strokeformer.py``.
    trained_as: the contestant before it that has the same networks.
    decision: in the place of the one chosen on validation scans.
    must_be_seen: whether a lesion counts only where stage 1 has seen something.
    overlap: of the windows of stage 2; None for the default.
    """

    boxes: str = "proposed"
    network: str | None = None
    copies: int = 0
    arguments: tuple[str, ...] = ()
    trained_as: str | None = None
    decision: Decision | None = None
    must_be_seen: bool = True
    overlap: float | None = None

    @property
    def stage_1(self) -> str:
        return "rpn_transferred" if self.copies else "rpn"


OURS = {
    "ours": Ours(),
    "true_boxes": Ours(boxes="true"),
    "whole": Ours(boxes="whole"),
    "regions_segresnet": Ours(network="segresnet"),
    "identity": Ours(network="identity"),
    "transferred": Ours(copies=COPIES),
    "cc_loss": Ours(arguments=("--seg_loss", "CCDiceCELoss")),
    "ici_loss": Ours(arguments=("--seg_loss", "ICILoss")),
    "deep_supervision": Ours(arguments=("--deep_supervision",)),
    "mirror": Ours(arguments=("--seg_context", "mirror")),
    "argmax": Ours(trained_as="ours", decision=Decision(), must_be_seen=False),
    "unseen": Ours(trained_as="ours", must_be_seen=False),
    "no_overlap": Ours(trained_as="ours", overlap=0.0),
    "half_overlap": Ours(trained_as="ours", overlap=0.5),
}


# --- cohorts -------------------------------------------------------------------------------------------


def draw_cohorts(out_dir: Path) -> None:
    draw(out_dir / "development", SEEDS["development"], N_TRAIN + N_VAL)
    cases = cases_of(out_dir / "development")
    link_cases(cases[:N_TRAIN], out_dir / "train")
    link_cases(cases[N_TRAIN:], out_dir / "val")
    draw(out_dir / "alike", SEEDS["alike"], N_TEST)
    draw(out_dir / "shifted", SEEDS["shifted"], N_TEST, *SHIFT)
    for part in ("train", "val", "alike", "shifted"):
        keep_brains(out_dir / part)


def keep_brains(folder: Path) -> None:
    """Find the brains of a cohort once for all contestants, and leave them where every script looks for them."""
    for case in progress(cases_of(folder), "Finding brains"):
        path = folder / BRAINS / brain_name(case.scan)
        if not path.exists():
            write_like(path, read_brain(case, folder / "cache/brains").astype(np.uint8), case.scan)


def cases_of(folder: Path) -> list:
    return with_brains(pair_cases([folder / "Scans"], [folder / "Masks"]), None)


def prepared(folder: Path) -> list[PreparedScan]:
    grid = Grid(tuple(map(int, GRID[1:])), spacing_mm=(2.0,) * 3)
    return [cached_scan(case, grid, folder / "cache") for case in progress(cases_of(folder), "Preparing")]


# --- ours ----------------------------------------------------------------------------------------------


def training_folder(out_dir: Path, run_dir: Path, variant: Ours) -> Path:
    """``train``, or the folder that has copies of its scans with transferred lesions beside them."""
    own, new, together = out_dir / "train", run_dir / "transferred", run_dir / "train"
    if not variant.copies:
        return own
    cohort = ["--scans_dir", own / "Scans", "--masks_dir", own / "Masks"]
    run("-m", "augmentation", *cohort, "--out_dir", new, "--copies", variant.copies, *TRANSFER)
    for kind in ("Scans", "Masks", BRAINS):
        for path in [*own.glob(f"{kind}/*"), *new.glob(f"{kind}/*")]:
            link(path, together / kind / path.name)
    link(own / "cohort.csv", together / "cohort.csv")
    return together


def folders(train: Path, val: Path, kind: str) -> list:
    """Arguments of a training's scans and masks: of slices, or of volumes where `kind` is empty."""
    return [
        word
        for part, folder in (("train", train), ("val", val))
        for name in ("Scans", "Masks")
        for word in (f"--{part}_{name.lower()}", folder / kind / name)
    ]


def train_stage_1(train: Path, val: Path, run_dir: Path, name: str, epochs: int, seed: int) -> Path:
    for folder in (train, val):
        cohort = ["--scans_dir", folder / "Scans", "--masks_dir", folder / "Masks"]
        run("-m", "data.slices", *cohort, *GRID, "--out_dir", folder / "slices")
    run(
        *["train_rpn.py", *folders(train, val, "slices"), *ROI, *STAGE_1, *TRANSFORMS, "--offline", "--num_samples", 0],
        *["--seed", seed, "--max_epochs", epochs, "--patience", epochs],
        *["--model_prefix", name, "--default_root_dir", run_dir],
    )
    return run_dir / name / "checkpoints/best.ckpt"


def train_ours(out_dir: Path, run_dir: Path, name: str, budget: str, seed: int) -> None:
    """Train both stages; stage 1 and the copies of scans are made once for all contestants that have the same."""
    variant, val = OURS[name], out_dir / "val"
    train = training_folder(out_dir, run_dir, variant)
    rpn_epochs, epochs = (math.ceil(count / (1 + variant.copies)) for count in EPOCHS[budget])
    if variant.boxes == "whole":
        regions, epochs = [], math.ceil(epochs / WHOLE)
    elif variant.boxes == "true":
        boxes = {scan.name: true_regions(scan) for folder in (train, val) for scan in prepared(folder)}
        write_regions(run_dir / "true.json", boxes)
        regions = ["--regions", run_dir / "true.json"]
    else:
        regions = ["--rpn_ckpt_path", train_stage_1(train, val, run_dir, variant.stage_1, rpn_epochs, seed)]
    replaced = [ROOT / "benchmarks/ablated.py", variant.network] if variant.network else []
    run(
        *[*replaced, "train_strokeformer.py", *folders(train, val, ""), *GRID, *ROI, *STAGE_2, *TRANSFORMS, *regions],
        *["--offline", "--num_samples", 0, "--seed", seed, "--max_epochs", epochs, "--patience", epochs],
        *["--model_prefix", name, "--default_root_dir", run_dir, *variant.arguments],
    )


def true_regions(scan: PreparedScan) -> list[Region]:
    """Regions of the RoI's size about each lesion."""
    from scipy.ndimage import find_objects, label

    places = find_objects(label(scan.mask & scan.brain, np.ones((3, 3, 3)))[0])
    return [expand_region(region_of(place), ROI_SIZE, scan.brain.shape) for place in places]


def load_ours(run_dir: Path, name: str) -> tuple[Callable[[PreparedScan], np.ndarray], int]:
    """From a prepared scan to its lesions, (D, H, W) bool on its own grid, and the parameters that takes."""
    from models.segmentation import module as strokeformer

    variant = OURS[name]
    if variant.network:
        strokeformer.build_segmenter = NETWORKS[variant.network]
    model, size = load_strokeformer(run_dir / (variant.trained_as or name) / "checkpoints/best.ckpt"), 0
    decision = variant.decision or model.decision
    if variant.boxes == "whole":
        regions_of = lambda scan: None  # noqa: E731
    elif variant.boxes == "true":
        regions_of = true_regions
    else:
        rpn = load_rpn(run_dir / variant.stage_1 / "checkpoints/best.ckpt")
        regions_of, size = rpn_source(rpn, ROI_SIZE), size_of(rpn)

    def predict(scan: PreparedScan) -> np.ndarray:
        regions = regions_of(scan)
        probabilities = scan.to_own_grid(model.segment(scan, regions, variant.overlap))
        seen = seen_on_own_grid(scan, regions) if variant.must_be_seen else None
        return decision.classes(probabilities, scan.own.spacing_mm, seen) > 0

    return predict, size + size_of(model)


def size_of(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- peers ---------------------------------------------------------------------------------------------


def train_peer(out_dir: Path, run_dir: Path, name: str, seconds: float, seed: int) -> None:
    network, steps = train(PEERS[name], prepared(out_dir / "train"), seconds, seed)
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_path(run_dir / f"{name}.pt") as temporary:
        torch.save(network.state_dict(), temporary)
    print(f"{name}: {steps} steps in {seconds:.0f} s of processor time")


def load_peer(run_dir: Path, name: str) -> tuple[Callable[[PreparedScan], np.ndarray], int]:
    """As `load_ours`."""
    network = PEERS[name].build(1)
    network.load_state_dict(torch.load(run_dir / f"{name}.pt", weights_only=True))
    predict = partial(segment, network.eval(), PEERS[name])
    return lambda scan: scan.to_own_grid(predict(scan)).argmax(0) > 0, size_of(network)


# --- both ----------------------------------------------------------------------------------------------


def train_contestant(out_dir: Path, run_dir: Path, name: str, budget: str, seed: int) -> None:
    """Train and note the processor time that it took; of stage 1 as well, where it is not trained already."""
    if name in OURS and (same := OURS[name].trained_as):
        shutil.copy(run_dir / f"{same}.json", run_dir / f"{name}.json")
        return
    before = processor_seconds()
    if name in OURS:
        train_ours(out_dir, run_dir, name, budget, seed)
    else:
        train_peer(out_dir, run_dir, name, SECONDS[budget], seed)
    write_json(run_dir / f"{name}.json", {"seconds": processor_seconds() - before})


def processor_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def test_contestant(out_dir: Path, run_dir: Path, name: str) -> None:
    """Scores per scan of both test cohorts; seconds and memory of the first scans."""
    predict, parameters = (load_ours if name in OURS else load_peer)(run_dir, name)
    for cohort in ("alike", "shifted"):
        rows, seconds, scans = [], [], prepared(out_dir / cohort)
        for case, scan in zip(cases_of(out_dir / cohort), progress(scans, f"Testing {name}"), strict=True):
            started = time.perf_counter()
            found = predict(scan)
            seconds.append(time.perf_counter() - started)
            rows.append({"model_name": name, "scan": case.name, **scan_scores(found, read_mask(case), (2.0,) * 3)})
        with atomic_path(run_dir / f"{name}_{cohort}.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    with FlopCounterMode(display=False) as counter:
        predict(scans[0])
    cost = {
        "parameters": parameters,
        "gflop": counter.get_total_flops() / 1e9,
        "seconds_a_volume": float(np.mean(seconds[1 : 1 + TIMED])),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    write_json(run_dir / f"{name}.json", {**read_json(run_dir / f"{name}.json"), **cost})


def print_tables(out_dir: Path, run_dir: Path) -> None:
    for cohort in ("alike", "shifted"):
        voxels = pd.read_csv(out_dir / cohort / "cohort.csv").set_index("scan").lesion_voxels
        tables = {
            path.name.removesuffix(f"_{cohort}.csv"): with_sick_dice(pd.read_csv(path), voxels)
            for path in sorted(run_dir.glob(f"*_{cohort}.csv"))
        }
        rows = [row_of(name, table, tables.get("ours"), run_dir) for name, table in tables.items()]
        print(f"\n{cohort}, {N_TEST} scans; [95 % bootstrap interval]; ours minus the other [paired], p by Wilcoxon")
        print_markdown(rows)


def with_sick_dice(table: pd.DataFrame, voxels: pd.Series) -> pd.DataFrame:
    """Scores with one more: the Dice of scans with lesions. Among all, a scan without any has 0 or 1."""
    return table.assign(dice_with_lesions=table.dice.where(table.scan.map(voxels) > 0))


def print_markdown(rows: list[dict]) -> None:
    columns = list({column: None for row in rows for column in row})
    for cells in (columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)):
        print(f"| {' | '.join(cells)} |")


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
    names = [*OURS, *PEERS]
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--contestants", nargs="+", choices=names, default=names)
    parser.add_argument("--budget", choices=EPOCHS, default="full")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--part", choices=["train", "test"], default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out_dir = args.out_dir.absolute()
    return args


def main() -> None:
    args = parse_args()
    run_dir = args.out_dir / f"{args.budget}_seed-{args.seed}"
    if args.part:  # a process of its own, whose time and memory are the contestant's
        (name,) = args.contestants
        if args.part == "train":
            train_contestant(args.out_dir, run_dir, name, args.budget, args.seed)
        else:
            test_contestant(args.out_dir, run_dir, name)
        return
    if not args.table:
        draw_cohorts(args.out_dir)
        for name in args.contestants:
            same = ["--out_dir", args.out_dir, "--contestants", name, "--budget", args.budget, "--seed", args.seed]
            for part, result in (("train", f"{name}.json"), ("test", f"{name}_shifted.csv")):
                if not (run_dir / result).exists():
                    run(ROOT / "benchmarks/peers.py", *same, "--part", part)
    print_tables(args.out_dir, run_dir)


if __name__ == "__main__":
    main()
