"""Seconds until cross_validation.py begins its first training step: at the first start, and resumed.

    python benchmarks/startup.py --folder /data/startup --n_scans 200
    python benchmarks/startup.py --folder /data/startup --n_scans 655 --link_copies [--ext .nii.gz]

Draws a few synthetic heads at 1 mm, prepares them as `data.prepare` does (189 x 192 x 192), and links scans, masks and
brains under as many names as a cohort has (655 in ATLAS v2.0). The program is killed at its first training step of
stage 1 and started again. The heads lie in the page cache: reading a cohort from a disk comes on top.

A scan takes 52 MB in the run's folder. --link_copies links what was written of one head under several names to one
file as the program goes, for a disk that does not hold 34 GB; the disk then has less to write.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

HEADS = 4
PARTS = {"Scans": "T1w", "Masks": "label-L_mask", "Brains": "desc-brain_mask"}
# What a start consists of, timed where it is called.
STEPS = {
    "find files, check headers": ("cross_validation", "find_cases"),
    "build both models": ("cross_validation", "check_models"),
    "check and prepare scans": ("models.cross_validation.folds", "CrossValidation.admit"),
    "choose folds": ("models.cross_validation.folds", "CrossValidation.choose_folds"),
    "compare with the run before": ("models.cross_validation.folds", "CrossValidation.begin"),
    "cut slices": ("models.cross_validation.folds", "CrossValidation.cut_slices"),
    "choose anchors": ("models.training.fit", "choose_anchors"),
    "loggers (W&B offline)": ("models.training.tracking", "build_loggers"),
}


# --- cohort --------------------------------------------------------------------------------------------


def run(*command) -> None:
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def draw_heads(folder: Path, ext: str) -> Path:
    """Heads of 189 x 192 x 192 in ``Scans/``, ``Masks/`` and ``Brains/``, unless an earlier call has left them."""
    drawn, prepared = folder / "drawn", folder / f"prepared{ext}"
    if not (prepared / "cohort.csv").exists():
        run("-m", "data.phantom", "--out_dir", drawn, "--n_subjects", HEADS, "--seed", 3, "--ext", ".nii.gz")
        given = ["--root", drawn, "--brains_dir", drawn / "TrueBrains", "--ext", ext]
        run("-m", "data.prepare", "--dataset", "atlas", *given, "--out_dir", prepared)
    return prepared


def link_cohort(heads: Path, cohort: Path, n_scans: int, ext: str) -> None:
    """Links to the heads under `n_scans` names, in turn, and their voxel size."""
    for part, ending in PARTS.items():
        sources = sorted((heads / part).iterdir())
        (cohort / part).mkdir(parents=True, exist_ok=True)
        for number in range(n_scans):
            (cohort / part / f"{subject(number)}_{ending}{ext}").symlink_to(sources[number % HEADS])
    rows = [f"{subject(number)}_T1w{ext},1 1 1" for number in range(n_scans)]
    (cohort / "cohort.csv").write_text("\n".join(["scan,spacing_mm", *rows, ""]))


def subject(number: int) -> str:
    return f"sub-{number:04d}"


def link_copies(run_folder: Path, n_scans: int) -> None:
    """Link the copies of each head that a first start has written, scan by scan as it finishes them."""
    originals: dict[tuple[int, str], Path] = {}
    for records, files_of in (("cache/{}_*/facts.json", prepared_files), ("slices/cache/{}_*.json", slice_files)):
        for number in range(n_scans):
            while not (record := next(run_folder.glob(records.format(subject(number))), None)):
                time.sleep(1)
            for path in files_of(record):
                original = originals.setdefault((number % HEADS, place_of(path)), path)
                if original != path:
                    os.link(original, link := path.with_name(f".link-{path.name}"))
                    link.replace(path)


def prepared_files(record: Path) -> list[Path]:
    return list(record.parent.glob("*.npy"))


def slice_files(record: Path) -> list[Path]:
    folder, rows = record.parent.parent, json.loads(record.read_text())
    brain = folder / "Brains" / f"{rows[0][0].split('_slice')[0]}.npy"
    return [brain, *(folder / part / name for row in rows for part, name in zip(("Scans", "Masks"), row, strict=False))]


def place_of(path: Path) -> str:
    """What is the same in the paths of all copies."""
    return re.sub(r"sub-\d+(_T1w_[0-9a-f]{12})?", "", "/".join(path.parts[-2:]))


# --- the program -----------------------------------------------------------------------------------------


def start(cohort: Path, out: Path, args: argparse.Namespace) -> dict:
    """One start of the program, up to its first training step; seconds by step, ``total`` among them."""
    arguments = [
        *["@recipes/atlas.args", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--ext", args.ext],
        *["--model_prefix", "seg", "--rpn_model_prefix", "rpn", "--default_root_dir", out / "StrokeFormer"],
        *["--rpn_default_root_dir", out / "RPN", "--scores_dir", out, "--rpn_scores_dir", out / "rpn_scores"],
        *["--num_workers", args.num_workers, "--offline"],
    ]
    told, began = out / "steps.json", time.time()
    run(__file__, "--child", told, *arguments)
    marks = json.loads(told.read_text())
    return {"imports": marks["main"] - began, **marks["took"], "total": marks["first step"] - began}


def child(told: Path, arguments: list[str]) -> None:
    """Run ``cross_validation.py`` with its steps timed; leave hard, as if killed, as the first training step begins."""
    sys.argv = ["cross_validation.py", *arguments]
    took: dict[str, float] = {}
    for step, (module, name) in STEPS.items():
        time_calls(step, module, name, took)
    import cross_validation
    from models.rpn.module import RPN
    from utils import cli

    marks = {"main": time.time(), "took": took}

    def stop(*_):
        marks["first step"] = time.time()
        told.write_text(json.dumps(marks))
        os._exit(0)

    RPN.training_step = stop
    cli.run(cross_validation.main, cross_validation.parse_args)


def time_calls(step: str, module: str, name: str, took: dict[str, float]) -> None:
    """Add what each call of a function takes to ``took[step]``."""
    owner = importlib.import_module(module)
    *holders, name = name.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    function: Callable = getattr(owner, name)

    def timed(*args, **kwargs):
        began = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            took[step] = took.get(step, 0) + time.time() - began

    setattr(owner, name, timed)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="takes the heads, which stay, and the run")
    parser.add_argument("--n_scans", type=int, default=24)
    parser.add_argument("--ext", default=".npy")
    parser.add_argument("--num_workers", type=int, default=2)
    parser.add_argument("--link_copies", action="store_true")
    args = parser.parse_args()
    heads = draw_heads(args.folder.absolute(), args.ext)
    with tempfile.TemporaryDirectory(dir=args.folder.absolute()) as folder:
        cohort, out = Path(folder) / "cohort", Path(folder)
        link_cohort(heads, cohort, args.n_scans, args.ext)
        if args.link_copies:
            arguments = out / "StrokeFormer/seg", args.n_scans
            threading.Thread(target=link_copies, args=arguments, daemon=True).start()
        for what in ("first start", "resumed"):
            took = start(cohort, out, args)
            total = took.pop("total")
            print(f"{what}, {args.n_scans} scans ({args.ext}): {total:.1f} s, {total / args.n_scans:.2f} s a scan")
            for step, seconds in {**took, "the rest": total - sum(took.values())}.items():
                print(f"  {step:30} {seconds:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
