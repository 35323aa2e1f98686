"""The centre of a scan, by its name."""

import re

from data.scans.cohort import Case


def centre_of_name(case: Case) -> str | None:
    """``R001`` of ATLAS's subject ``r001s001``; None where the name tells no centre."""
    match = re.fullmatch(r"(r\d{3})s\d{3}", case.subject, re.IGNORECASE)
    return match[1].upper() if match else None
