"""What made a result: the command line, settings, versions and git commit, kept beside it in ``run.json``."""

import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from utils.errors import UserError
from utils.files import read_json, write_json

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "monai", "numpy", "nibabel", "scikit-image")
# Settings that change where or how fast a run goes, not what it computes: a resumed run may differ in them.
FREE_SETTINGS = {
    "devices", "num_workers", "offline", "entity", "project", "rpn_project", "group", "rpn_group", "max_epochs",
    "rpn_max_epochs", "patience", "rpn_patience", "num_samples", "log_every_n_val_epochs", "lr_logging_interval",
    "n_predictions", "target_layers", "out_dir",
}  # fmt: skip


def describe_run(settings: dict) -> dict:
    """The command line, its settings, the git commit and the versions that made a result."""
    return {
        "command": sys.argv,
        "settings": settings,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in PACKAGES},
    }


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def open_run(folder: Path, settings: dict) -> None:
    """Record a new run in ``run.json``, or check that the one begun in this folder had the same settings.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    record = folder / "run.json"
    if record.exists():
        earlier = read_json(record)["settings"]
        now = _plain(settings)
        changed = [k for k in now if k not in FREE_SETTINGS and k in earlier and earlier[k] != now[k]]
        if changed:
            name = changed[0]
            raise UserError(
                f"{folder} holds a run with --{name} {earlier[name]}, not {now[name]}; "
                "choose another name or folder, or remove this one"
            )
    else:
        write_json(record, describe_run(_plain(settings)))


def _plain(settings: dict) -> dict:
    """Settings as JSON gives them back: tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
