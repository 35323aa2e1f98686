"""The report of ``python -m runner``: masks that nobody has checked yet."""

from pathlib import Path

import pandas as pd

from data.files.names import result_name
from data.scans.cohort import Case
from report.page import Section, table, write_page
from report.scans import PREDICTION_NOTE, ranked, show_scan


def report_drafts(cases: list[Case], folder: Path) -> Path:
    """Write ``report.html`` beside the ``volumes.csv`` of a folder; up to three scans have a view. Returns its path."""
    volumes = pd.read_csv(folder / "volumes.csv").assign(scan=[case.name for case in cases])
    by_name, views = {case.name: case for case in cases}, []
    for rank, row in ranked(volumes).items():
        case = by_name[row.scan]
        prediction = folder / "predictions" / result_name(case.scan, "prediction")
        views += show_scan(case, rank, row, None, prediction)
    parts = [Section("Volumes", [table(volumes)]), Section("Scans", views, PREDICTION_NOTE)]
    return write_page(folder / "report.html", "Drafts of lesion masks", {"scans": len(cases)}, parts)
