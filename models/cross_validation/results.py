"""What the folds of a cross-validation leave: checkpoints, and scores in a file each, so that they can be joined."""

import os
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from data.files.listing import counted
from data.scans.folds import listed_folds
from models.training.runs import best_checkpoint
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.provenance import read_run
from utils.scores.intervals import Estimate

# Raised by hand when the same networks would get other scores or other files: folds are then tested anew.
RESULTS_VERSION = 1


def fold_name(prefix: str, number: int) -> str:
    """Name of a fold's training, of either stage, by ``--model_prefix`` or ``--rpn_model_prefix``."""
    return f"{prefix}_fold-{number}"


def checkpoints_in(paths: Iterable[str], prefix: str = "") -> tuple[str, ...]:
    """The checkpoints among paths; a folder of a cross-validation means the best ones of its folds.

    Args:
        prefix: of the stage's arguments of ``cross_validation.py``: ``rpn_`` for stage 1.

    Raises:
        UserError: a folder of something else, or of a cross-validation with folds yet to run.
    """
    lists = [_fold_checkpoints(Path(path), prefix) if Path(path).is_dir() else [path] for path in paths]
    return tuple(chain.from_iterable(lists))


def _fold_checkpoints(folder: Path, prefix: str) -> list[str]:
    if not (folder / "folds.json").exists() or not (settings := read_run(folder).get("settings")):
        raise UserError(
            f"{folder} is no folder of a cross-validation, which holds folds.json and run.json; give that "
            "(StrokeFormer/<model_prefix>) or .ckpt files"
        )
    k = len(listed_folds(folder / "folds.json"))
    if missing := missing_results(folder, k):
        raise UserError(
            f"{counted(len(missing), 'fold')} of {folder} yet to run; run cross_validation.py with --folds_to_run "
            f"{' '.join(map(str, missing))}, or give the .ckpt files of the others"
        )
    # Both stages may have been moved together.
    root = os.path.relpath(settings[f"{prefix}default_root_dir"], settings["default_root_dir"])
    names = [fold_name(settings[f"{prefix}model_prefix"], number) for number in range(k)]
    return [os.path.normpath(best_checkpoint(folder.parent / root / name)) for name in names]


def results_file(folder: Path, number: int) -> Path:
    return folder / f"results_fold-{number}.json"


def write_results(folder: Path, number: int, rows: list[dict], tested: Mapping[str, object]) -> None:
    """Keep the scores of a fold of the cross-validation in a folder.

    Args:
        rows: ``stage``, ``score`` and ``estimate`` of each.
        tested: what distinguishes this test from others; ``networks`` are the digests of what was tested.
    """
    plain = []
    for row in rows:
        estimate = row["estimate"]  # JSON's numbers keep every digit; NaN is kept as well
        lists = {"part": estimate.part.tolist(), "whole": estimate.whole.tolist()}
        plain.append({**row, "estimate": {**vars(estimate), **lists}})
    write_json(results_file(folder, number), {**tested, "rows": plain})


def has_results(folder: Path, number: int, tested: Mapping[str, object]) -> bool:
    """Whether a fold has the scores of this very test."""
    try:
        results = read_json(results_file(folder, number))
        return all(results[key] == value for key, value in tested.items())
    except (UserError, KeyError, TypeError):
        return False  # they only save time: without them the fold is tested anew


def read_results(folder: Path, number: int, networks: dict[str, str]) -> list[dict]:
    """The rows of `write_results`, to the last digit; refuses those of other networks."""
    path = results_file(folder, number)
    results = read_json(path)
    if results["networks"] != networks:
        raise UserError(f"{path} is of other networks than there are now; run it again with --folds_to_run {number}")
    rows = []
    for row in results["rows"]:
        arrays = {name: np.array(row["estimate"][name]) for name in ("part", "whole")}
        rows.append({**row, "estimate": Estimate(**{**row["estimate"], **arrays})})
    return rows


def missing_results(folder: Path, k: int) -> list[int]:
    """The folds of `k` that have not been run to their end."""
    return [number for number in range(k) if not results_file(folder, number).exists()]
