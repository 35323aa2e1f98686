"""The table of subjects of ``--metadata``."""

import re
from pathlib import Path

import pandas as pd

from utils.errors import UserError

ARGUMENT = "--metadata"
SUBJECT = re.compile(r"(.*[ _])?(sub|subject|participant|patient|bids)([ _]?id)?|id", re.IGNORECASE)  # of a column


def read_metadata(path: Path | str) -> pd.DataFrame:
    """A table such as BIDS's ``participants.tsv``, by subject, without ``sub-``; text, and NaN where unknown."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            separator = max("\t,;", key=file.readline().count)
        table = pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig", index_col=False)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        raise UserError(f"{ARGUMENT} {path} is no readable table ({reason}); give a .tsv or .csv") from None
    named = [name for name in table if SUBJECT.fullmatch(str(name))]
    if not named:
        raise UserError(f"{ARGUMENT} {path} has no column of subjects; name it participant_id")
    table = table.apply(lambda column: column.str.strip()).drop_duplicates()
    return table.set_index(table.pop(named[0]).str.removeprefix("sub-"))
