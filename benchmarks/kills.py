"""Does a cross-validation survive signals? Its tables after many stops, beside those of an undisturbed run.

    python benchmarks/kills.py --out_dir runs/kills [--signals TERM INT HUP] [--times 5] [--seed 0]

A start is stopped at a random time after one of its trainings has begun: in turn the script alone, as by docker stop,
and its whole group of processes, as by a terminal. Then it may end. The program exits with 1 if an exit code is not
128 + signal (-9 for KILL), if a process is left, or if a table differs.
"""

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
from common import ROOT, argument_parser, draw

TABLES = ("scores/scores.csv", "scores/per_scan_scores.csv", "rpn_scores/scores.csv", "scores/kills_summary.csv")
LONGEST_S = 10  # from the beginning of a training to the signal
QUICK = [
    *["--k", 2, "--splits", 34, 16, 50, "--scan_dim", 1, 24, 25, 29, "--roi_size", 8, 8, 16, "--logger", "csv"],
    *["--rpn_image_size", 64, "--rpn_batch_size", 8, "--rpn_max_epochs", 12, "--batch_size", 2, "--max_epochs", 40],
    *["--patience", 40, "--score_threshold", 0.01, "--transforms", "flip", "noise", "--num_workers", 1],
]


def start(cohort: Path, folder: Path) -> subprocess.Popen:
    """Start the cross-validation in a process group of its own; its output goes into ``log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    data = ["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks"]
    names = ["--model_prefix", "kills", "--rpn_model_prefix", "kills"]
    command = [sys.executable, ROOT / "cross_validation.py", *data, *names, *QUICK]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def stop(process: subprocess.Popen, folder: Path, number: int, seconds: float, group: bool) -> str:
    """Send a signal so long after the next training has begun; what was wrong with the end."""
    logs = "*/*/logs/version_*"
    before = len(list(folder.glob(logs)))
    while process.poll() is None and len(list(folder.glob(logs))) == before:
        time.sleep(0.1)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        (os.killpg if group else os.kill)(process.pid, number)
    code, expected = process.wait(), -number if number == signal.SIGKILL else 128 + number
    time.sleep(6)  # a worker of a loader looks for its parent every five seconds
    left = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, check=False).stdout
    return f"{'' if code == expected else f' EXIT CODE {code}'}{' PROCESSES ARE LEFT' if left else ''}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--signals", nargs="+", default=["TERM", "INT", "HUP"])
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cohort, calm, killed = (args.out_dir / name for name in ("cohort", "undisturbed", "killed"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets its jobs in the background ignore
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, and so would a training
    draw(cohort, 1, 6, spacing_mm=(8,))
    (cohort / "TrueBrains").rename(cohort / "Brains")
    wrong = start(cohort, calm).wait() != 0
    rng = np.random.default_rng(args.seed)
    for turn, name in zip(count(), args.signals * args.times):
        seconds, number = rng.uniform(0, LONGEST_S), signal.Signals[f"SIG{name}"]
        complaint = stop(start(cohort, killed), killed, number, seconds, group=turn % 2 == 1)
        wrong |= bool(complaint)
        print(f"{name} after {seconds:.1f} s{complaint}", flush=True)
    wrong |= start(cohort, killed).wait() != 0
    for table in TABLES:
        same = (calm / table).read_bytes() == (killed / table).read_bytes()
        wrong |= not same
        print(f"{table}: {'the same' if same else 'DIFFERENT'}")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
