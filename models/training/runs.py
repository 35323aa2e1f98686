"""The folder of a network's training."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from data.scans.cohort import Case
from models.checkpoints import read_checkpoint
from models.training.settings import Run
from utils.errors import UserError
from utils.files import read_json

LAST, FINISHED = "checkpoints/last.ckpt", "finished.json"  # in the folder


def run_folder(run: Run, name: str) -> Path:
    return Path(run.default_root_dir) / name


def best_checkpoint(folder: Path) -> Path:
    return folder / "checkpoints/best.ckpt"


def folder_of(checkpoint: Path | str) -> Path:
    """The run's folder that a checkpoint lies in, as `best_checkpoint` has it."""
    return Path(checkpoint).parent.parent


def is_trained(folder: Path) -> bool:
    """Whether a run's folder holds any checkpoint."""
    return (folder / LAST).exists() or best_checkpoint(folder).exists()


def is_finished(folder: Path, max_epochs: int) -> bool:
    file = folder / FINISHED
    return file.exists() and best_checkpoint(folder).exists() and read_json(file)["max_epochs"] >= max_epochs


def logged_metrics(folder: Path) -> pd.DataFrame:
    """All metrics of a run; every resumption writes a ``metrics.csv`` of its own."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    return pd.concat([pd.read_csv(path) for path in logs], ignore_index=True)


def inputs_of(
    train: Iterable[Case], val: Iterable[Case], digests: Mapping[str, str], proposer: str | None = None
) -> dict[str, str]:
    """What a network learns from, for ``run.json``: digests of its cases and of what proposes regions, None without."""
    sides = {"train": train, "val": val}
    inputs = {f"{side} {case.name}": digests[case.name] for side, cases in sides.items() for case in cases}
    return inputs if proposer is None else {**inputs, "what proposes its regions": proposer}


def resume_point(folder: Path) -> tuple[Path | None, int]:
    """The checkpoint that a training goes on from, the last one or, where that is broken, the best, and its epochs.

    None and 0 where there is none; a `UserError` where there are checkpoints, but none can be read.
    """
    candidates = [path for path in (folder / LAST, best_checkpoint(folder)) if path.exists()]
    for path in candidates:
        try:
            epochs = read_checkpoint(path)["epoch"] + 1
        except UserError:
            continue
        if path != candidates[0]:
            print(f"{candidates[0]} is broken: training goes on from {path}")
        return path, epochs
    if candidates:
        raise UserError(f"{candidates[0]} is broken and so is every other; remove {folder} to train it anew")
    return None, 0
