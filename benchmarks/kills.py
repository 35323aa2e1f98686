"""Does the demo survive SIGKILL? Its scores after ten kills, beside those of an undisturbed run.

    python benchmarks/kills.py --out_dir runs/kills [--kills 10] [--seed 0]

Each start is killed, with all its processes, after a random time: uniform, and together about as long as the
undisturbed run took. A start repeats the epoch that was cut off and checks all scans, so that the kills fall before the
end. Then it may end. Both runs share cohort and brains. The program exits with 1 if a file of scores differs, or if a
start fails by itself.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.peers import keep_brains
from benchmarks.proposals import run

TABLES = ("scores/scores.csv", "scores/per_scan_scores.csv", "rpn_scores/scores.csv", "scores/demo_summary.csv")


def draw_cohort(folder: Path) -> None:
    """The demo's cohort, with its brains found once for both runs."""
    run("-m", "data.phantom", "--out_dir", folder, "--n_subjects", 96, "--spacing", 3, "--seed", 7)
    keep_brains(folder)


def start_demo(cohort: Path, folder: Path) -> subprocess.Popen:
    """Start the demo's cross-validation in a process group of its own; its output goes into ``log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *[sys.executable, ROOT / "cross_validation.py", f"@{ROOT / 'recipes/demo.args'}"],
        *["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks"],
        *["--model_prefix", "demo", "--rpn_model_prefix", "demo"],
    ]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            list(map(str, command)), cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finish(process: subprocess.Popen, folder: Path) -> None:
    if process.wait():
        sys.exit(f"a start ended with {process.returncode}; {folder / 'log.txt'} tells why")


def kill_after(process: subprocess.Popen, seconds: float, folder: Path) -> bool:
    """Kill a run after so many seconds; whether it was still going on."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    finish(process, folder)
    return False


def last_line(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace").rstrip().splitlines()[-1].split("\r")[-1][:90]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cohort, calm, killed = (args.out_dir.absolute() / name for name in ("cohort", "undisturbed", "killed"))
    draw_cohort(cohort)
    started = time.monotonic()
    finish(start_demo(cohort, calm), calm)
    duration = time.monotonic() - started
    print(f"undisturbed: {duration:.0f} s", flush=True)
    for seconds in np.random.default_rng(args.seed).uniform(0, 2 * duration / args.kills, args.kills):
        going = kill_after(start_demo(cohort, killed), seconds, killed)
        print(f"{'killed' if going else 'had ended'} after {seconds:.0f} s: {last_line(killed)}", flush=True)
    finish(start_demo(cohort, killed), killed)
    same = {table: (calm / table).read_bytes() == (killed / table).read_bytes() for table in TABLES}
    print("\n".join(f"{table}: {'the same' if equal else 'DIFFERENT'}" for table, equal in same.items()))
    sys.exit(not all(same.values()))


if __name__ == "__main__":
    main()
