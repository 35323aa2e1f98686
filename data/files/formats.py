"""Formats of images that no script reads, and the commands that convert them."""

from collections.abc import Iterable
from pathlib import Path

# By the endings of their files; `nib-convert` comes with nibabel.
COMMANDS = {
    (".dcm", ".ima"): "dcm2niix -z y {folder}",
    (".mgz", ".mgh"): "mri_convert {stem}{ending} {stem}.nii.gz",
    (".img", ".hdr"): "nib-convert {stem}.img {stem}.nii.gz",
    (".nrrd", ".nhdr", ".mha", ".mhd"): "c3d {stem}{ending} -o {stem}.nii.gz",
}


def conversion(path: Path) -> str | None:
    """The command that converts an image of another format; None for any other file."""
    ending = path.suffix.lower()
    if ending not in sum(COMMANDS, ()) and _is_dicom(path):
        ending = ".dcm"
    command = next((command for endings, command in COMMANDS.items() if ending in endings), None)
    return command and command.format(folder=path.parent, stem=path.with_suffix(""), ending=path.suffix)


def first_conversion(paths: Iterable[Path]) -> tuple[str, str] | None:
    """The name of the first image of another format among files, and its `conversion`."""
    return next(((path.name, command) for path in paths if (command := conversion(path))), None)


def _is_dicom(path: Path) -> bool:
    """Whether a file says so itself: names of DICOM files often have no ending, or end in a number."""
    if path.suffix.strip(".0123456789"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
