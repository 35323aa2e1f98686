"""Tables of scores, read again, and those of subgroups made of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from models.evaluation.settings import Outputs
from utils.files import STAGE_2_TABLES
from utils.scores.subgroups import group_scores

PER_SCAN_FILE, PER_LESION_FILE, VOLUMES_FILE, PER_GROUP_FILE = STAGE_2_TABLES


def read_rows(path: Path, names: Iterable[str]) -> pd.DataFrame:
    """The rows of some models in a table of scores."""
    rows = pd.read_csv(path, dtype={"found": "boolean"})
    return rows[rows.model_name.isin(list(names))].reset_index(drop=True)


def read_scans(scores_dir: Path, names: Sequence[str]) -> pd.DataFrame:
    """A row a scan: its volumes and its scores."""
    volumes, scores = (read_rows(scores_dir / file, names) for file in (VOLUMES_FILE, PER_SCAN_FILE))
    return volumes.merge(scores, on=["model_name", "scan"])


def save_subgroups(outputs: Outputs, name: str, models: Sequence[str], groups: pd.DataFrame, seed: int) -> None:
    """Write the scores of subgroups over the test scans of all `models`, under one name; `groups` is `group_scans`'."""
    folder = Path(outputs.scores_dir)
    scans, lesions = read_scans(folder, models), read_rows(folder / PER_LESION_FILE, models)
    outputs.update(name, {PER_GROUP_FILE: group_scores(scans, lesions, groups, seed)})
