"""What the folds of a cross-validation scored, kept a file each, so that they can be run apart and joined."""

from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import read_json, write_json
from utils.intervals import Estimate


def results_file(folder: Path, number: int) -> Path:
    return folder / f"results_fold-{number}.json"


def write_results(folder: Path, number: int, rows: list[dict], networks: dict[str, str]) -> None:
    """Keep the scores of a fold.

    Args:
        folder: of the cross-validation.
        rows: ``stage``, ``score`` and ``estimate``, as `CrossValidation.run_fold` returns them.
        networks: digests of what was tested.
    """
    plain = [{**row, "estimate": _plain(row["estimate"])} for row in rows]
    write_json(results_file(folder, number), {"networks": networks, "rows": plain})


def read_results(folder: Path, number: int, networks: dict[str, str]) -> list[dict]:
    """The rows that `write_results` kept, to the last digit; refuses those of other networks."""
    path = results_file(folder, number)
    kept = read_json(path)
    if kept["networks"] != networks:
        raise UserError(f"{path} is of other networks than there are now; run it again with --folds_to_run {number}")
    return [{**row, "estimate": _estimate(row["estimate"])} for row in kept["rows"]]


def missing_results(folder: Path, k: int) -> list[int]:
    """The folds of `k` that have not been run to their end."""
    return [number for number in range(k) if not results_file(folder, number).exists()]


def _plain(estimate: Estimate) -> dict:
    """For JSON, whose numbers keep every digit; NaN is kept as well."""
    return {**vars(estimate), "part": estimate.part.tolist(), "whole": estimate.whole.tolist()}


def _estimate(plain: dict) -> Estimate:
    return Estimate(**{**plain, "part": np.array(plain["part"]), "whole": np.array(plain["whole"])})
