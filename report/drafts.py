"""The report of ``python -m runner``: masks that nobody has checked yet."""

from pathlib import Path

import pandas as pd

from data.scans.cohort import Case
from report.page import Section, table, write_page
from report.scans import show_scans


def report_drafts(cases: list[Case], folder: Path) -> Path:
    """Write ``report.html`` beside the ``volumes.csv`` of a folder; up to three scans have a view. Returns its path."""
    volumes = pd.read_csv(folder / "volumes.csv")
    views = show_scans(folder, volumes.assign(model_name=""), None, cases)
    parts = [Section("Volumes", [table(volumes)]), views]
    return write_page(folder / "report.html", "Drafts of lesion masks", {"scans": len(cases)}, parts)
