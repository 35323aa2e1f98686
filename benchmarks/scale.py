"""What cohorts of 655, 10,000 and 1,000,000 scans cost in training and inference, from what a few scans cost here.

    python benchmarks/scale.py --folder runs/scale [--gpu_speedup 60] [--cores_per_gpu 8] [--disk_mb_s 1000]

Draws four synthetic heads at 1 mm and measures on one core of this machine, each part in a process of its own: seconds,
disk and memory to prepare a scan, to make a slice or a window for training, to take a training step, and to segment a
scan. All else is arithmetic (`epoch_s` and below), on assumptions that are arguments: how much faster than this core a
GPU is, how many cores and how fast a disk it has. `benchmarks.loader` simulates how long the GPU waits for its loader.
What was measured stays in the folder; --remeasure forgets it.
"""

import argparse
import resource
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from benchmarks.loader import simulate
from benchmarks.peers import print_markdown
from benchmarks.proposals import run
from benchmarks.scale_parts import PARTS
from utils.files import read_json, write_json

COHORTS = (655, 10_000, 1_000_000)  # the first is ATLAS v2.0's training set
GPUS = (1, 8, 64)
PER_MACHINE = 8  # GPUs that share a disk
WORKERS = (1, 2, 4, 8, 16)
# Seconds of a resumed start a scan: (11.0 - 7.8) / (655 - 300), measured by benchmarks/startup.py (docs/data.md).
RESUME_S = 0.009
STAGES = {"1": "slices", "2": "windows"}
ASSUMED = ("gpu_speedup", "cores_per_gpu", "disk_mb_s", "ram_gb", "epochs")


def measure(folder: Path) -> dict:
    """What each part found, measured now where it has not been."""
    for part in PARTS:
        if not part_file(folder, part).exists():
            run(__file__, "--folder", folder, "--part", part)
    return {part: read_json(part_file(folder, part)) for part in PARTS}


def part_file(folder: Path, part: str) -> Path:
    return folder / f"{part.replace(' ', '_')}.json"


# --- arithmetic ------------------------------------------------------------------------------------------


def epoch_s(stage: str, scans: int, gpus: int, found: dict, args: argparse.Namespace) -> dict[str, float]:
    """Seconds that each resource is busy in an epoch; they work at the same time, so the largest is the epoch's.

    GPU: steps of a batch on each GPU. CPU: items over all cores. disk: what items read over the disks of all machines,
    or nothing where the memory of the machines keeps the files.
    """
    items, step = scans * found["load"][stage]["per_scan"], found[f"train {stage}"]
    machines = -(-gpus // PER_MACHINE)
    kept_mb = scans * found["prepare"]["slices_mb" if stage == "1" else "prepared_mb"]
    read_mb = 0.0 if kept_mb < 1e3 * args.ram_gb else items * found["load"][stage]["read_mb"]
    return {
        "GPU": items / step["batch"] / gpus * step["step_s"] / args.gpu_speedup,
        "CPU": items * np.mean(found["load"][stage]["item_s"]) / (gpus * args.cores_per_gpu),
        "disk": read_mb / (machines * args.disk_mb_s),
    }


def inference_s(scans: int, gpus: int, found: dict, args: argparse.Namespace) -> dict[str, float]:
    """Seconds that each resource is busy when all scans are segmented; the brain is found on the CPU."""
    took = found["segment"]
    network = took["stage 1"] + took["network"]
    return {
        "GPU": scans * network / args.gpu_speedup / gpus,
        "CPU": scans * (took["all"] - network) / (gpus * args.cores_per_gpu),
        "disk": scans * found["prepare"]["source_mb"] / (-(-gpus // PER_MACHINE) * args.disk_mb_s),
    }


def workers_to_keep_up(stage: str, found: dict, args: argparse.Namespace) -> float:
    """Workers that make a batch in the time of a step, on average."""
    step = found[f"train {stage}"]
    return step["batch"] * np.mean(found["load"][stage]["item_s"]) / (step["step_s"] / args.gpu_speedup)


def waiting(stage: str, workers: int, found: dict, args: argparse.Namespace, batches: int = 2000) -> float:
    """Simulated share of an epoch in which the GPU waits; items take as long as measured ones, drawn at random."""
    step = found[f"train {stage}"]
    drawn = np.random.default_rng(0).choice(found["load"][stage]["item_s"], (batches, step["batch"]))
    return simulate(drawn.sum(1), step["step_s"] / args.gpu_speedup, workers).waiting


# --- tables ----------------------------------------------------------------------------------------------


def said(busy: dict[str, float]) -> str:
    """The time of the resource that is busy longest, and which one."""
    limit = max(busy, key=busy.get)
    return f"{duration(busy[limit])} ({limit})"


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def measured_rows(found: dict) -> list[dict]:
    ready, loading, took = found["prepare"], found["load"], found["segment"]
    rows = [
        measured(
            "a scan checked and prepared, brain known", ready, "check_s", ready["source_mb"], ready["prepared_mb"]
        ),
        measured("a scan cut into slices", ready, "cut_s", kept_mb=ready["slices_mb"]),
    ]
    for stage, what in STAGES.items():
        load, step = {**loading[stage], "GiB": loading["GiB"]}, found[f"train {stage}"]
        one = f"stage {stage}, one of {load['per_scan']:.0f} {what} a scan"
        rows += [
            measured(f"{one}, read", load, "read_s", load["read_mb"]),
            measured(f"{one}, read and augmented", load, "item_s"),
            measured(f"stage {stage}, a training step of {step['batch']} {what}", step, "step_s"),
        ]
    both = {"both": took["stage 1"] + took["network"], **took}
    return [
        *rows,
        measured("a scan segmented, file to file", took, "all", ready["source_mb"]),
        measured("of these, the brain", took, "brain"),
        measured("of these, both networks", both, "both"),
    ]


def measured(what: str, part: dict, seconds: str, read_mb: float | None = None, kept_mb: float | None = None) -> dict:
    """A row on what was measured; `seconds` is the key of them, one number or one for each item."""
    return {
        "what": what,
        "seconds": f"{np.mean(part[seconds]):.2g}",
        "MB read": number(read_mb),
        "MB written": number(kept_mb),
        "peak GiB of the process": f"{part['GiB']:.1f}",
    }


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def kept_rows(found: dict) -> list[dict]:
    ready = found["prepare"]
    return [
        {
            "scans": f"{n:,}",
            "prepared": f"{n * ready['prepared_mb'] / 1e3:,.0f} GB",
            "slices": f"{n * ready['slices_mb'] / 1e3:,.0f} GB",
            "files of slices": f"{n * ready['files']:,.0f}",
            "memory for their table": f"{n * ready['table_kb'] / 1e6:,.2f} GB",
            "preparing, core time": duration(n * (ready["check_s"] + ready["cut_s"] + found["segment"]["brain"])),
            "resumed start": duration(n * RESUME_S),
        }
        for n in COHORTS
    ]


def cost_rows(found: dict, args: argparse.Namespace) -> list[dict]:
    rows = []
    for n in COHORTS:
        for gpus in GPUS:
            busy = {stage: epoch_s(stage, n, gpus, found, args) for stage in STAGES}
            training_s = sum(e * max(busy[stage].values()) for stage, e in zip(STAGES, args.epochs, strict=True))
            rows.append(
                {
                    "scans": f"{n:,}",
                    "GPUs": str(gpus),
                    **{f"stage {stage}, an epoch": said(busy[stage]) for stage in STAGES},
                    "a training": duration(training_s),
                    f"in the steps of {COHORTS[0]}": duration(training_s * COHORTS[0] / n),
                    "inference": said(inference_s(n, gpus, found, args)),
                }
            )
    return rows


def waiting_rows(found: dict, args: argparse.Namespace) -> list[dict]:
    rows = [
        {"workers a GPU": str(n), **{f"stage {s}": f"{waiting(s, n, found, args):.0%}" for s in STAGES}}
        for n in WORKERS
    ]
    enough = {f"stage {s}": f"{workers_to_keep_up(s, found, args):.1f} workers" for s in STAGES}
    return [*rows, {"workers a GPU": "as fast as the GPU", **enough}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gpu_speedup", type=float, default=60, help="a GPU's pace over that of this core")
    parser.add_argument("--cores_per_gpu", type=int, default=8, help="as fast as this one")
    parser.add_argument("--disk_mb_s", type=float, default=1000, help=f"of the disk of a machine of {PER_MACHINE} GPUs")
    parser.add_argument("--ram_gb", type=float, default=256, help="for files, of a machine")
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 250), help="of a training, of either stage")
    parser.add_argument("--remeasure", action="store_true")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.absolute()
    if args.part:
        found = PARTS[args.part](folder)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        write_json(part_file(folder, args.part), {"GiB": memory, **found})
        return
    for part in PARTS if args.remeasure else ():
        part_file(folder, part).unlink(missing_ok=True)
    found = measure(folder)
    assumed = ", ".join(f"{name} {getattr(args, name)}" for name in ASSUMED)
    print(f"measured on threads: {torch.get_num_threads()}; assumed: {assumed}")
    for rows in (measured_rows(found), kept_rows(found), cost_rows(found, args), waiting_rows(found, args)):
        print()
        print_markdown(rows)


if __name__ == "__main__":
    main()
