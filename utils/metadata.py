"""The table of subjects of ``--metadata``."""

from pathlib import Path

import pandas as pd

from utils.errors import UserError

SUBJECT = ("subject", "participant_id")


def read_metadata(path: Path | str) -> pd.DataFrame:
    """A CSV or TSV file as a table indexed by subject, without ``sub-``; its columns as in the file."""
    try:
        table = pd.read_csv(path, sep=None, engine="python", encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"--metadata {path} cannot be read ({error}); give a CSV or TSV file") from None
    column = next((name for name in SUBJECT if name in table), None)
    if column is None:
        raise UserError(f"--metadata {path} has no column {' or '.join(SUBJECT)}; name the subjects' so")
    return table.set_index(table[column].astype(str).str.removeprefix("sub-"))
