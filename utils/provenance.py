"""What made a result: the command line, settings, versions and git commit, kept beside it in ``run.json``."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from utils.cli.parser import recipes
from utils.errors import UserError
from utils.files import read_json, write_json

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "monai", "numpy", "nibabel", "scikit-image")
# Settings of what an evaluation leaves.
RESULT_SETTINGS = {
    "n_predictions", "target_layers", "rpn_target_layers", "probabilities", "uncertainty",
    "scores_dir", "scores_file", "per_size_scores_file", "rpn_scores_dir", "rpn_scores_file",
}  # fmt: skip
# Settings that change where or how fast a run goes, not what it computes: a resumed run may differ in them. What lies
# behind a path is told by its digest.
FREE_SETTINGS = RESULT_SETTINGS | {
    "devices", "num_nodes", "strategy", "compile",
    "num_workers", "offline", "entity", "project", "rpn_project", "group", "rpn_group", "max_epochs",
    "rpn_max_epochs", "patience", "rpn_patience", "num_samples", "log_every_n_val_epochs", "lr_logging_interval",
    "out_dir", "scans_dir", "masks_dir", "brains_dir", "augmented_dir", "folds", "folds_to_run", "aggregate", "logger",
    "launcher", "ray_address", "gpus_per_fold",
    "train_scans", "train_masks", "val_scans", "val_masks", "regions", "rpn_ckpt_path", "default_root_dir",
    "rpn_default_root_dir",
}  # fmt: skip


def describe_run(settings: dict, packages: Sequence[str] = PACKAGES) -> dict:
    """The command line, its recipes, its settings, the git commit and the versions that made a result."""
    return {
        "command": sys.argv,
        "recipes": recipes(sys.argv),
        "settings": settings,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in packages},
    }


def git_commit() -> str | None:
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    """What git answers, where there is one; it writes nothing, or a killed run could leave the repository locked."""
    if not shutil.which("git"):
        return None
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def open_run(folder: Path, settings: dict, inputs: dict[str, str] | None = None, begun: bool = True) -> None:
    """Record a new run in ``run.json``, or check that the one in this folder had the same settings and inputs.

    Args:
        inputs: digests of what the run's results depend on, by name; None where they follow their inputs by themselves.
        begun: whether there are such results yet; without any, the run is recorded anew.

    Raises:
        UserError: the folder holds a run with other settings, or results of other inputs.
    """
    if begun:
        require_settings(folder, settings)
        require_inputs(folder, inputs)
    if not (begun and (folder / "run.json").exists()):
        write_json(folder / "run.json", {**describe_run(_plain(settings)), "inputs": inputs})


def read_run(folder: Path) -> dict:
    """The ``run.json`` of a folder; empty where there is none."""
    record = folder / "run.json"
    content = read_json(record) if record.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{record} is no record of a run; remove {folder} or choose another name")
    return content


def require_settings(folder: Path, settings: dict) -> None:
    """Refuse a run in `folder` that was begun with other settings, or before there was a switch that is on now."""
    earlier, now = read_run(folder).get("settings", {}), _plain(settings)
    for name in now if earlier else ():
        held = earlier.get(name, False if now[name] is True else now[name])
        if name not in FREE_SETTINGS and held != now[name]:
            raise UserError(
                f"{folder} holds a run with --{name} {held}, not {now[name]}; "
                "choose another name or folder, or remove this one"
            )


def settings_of_results(settings: dict) -> dict:
    """The settings that decide what an evaluation leaves, given its networks and scans."""
    return {k: v for k, v in _plain(settings).items() if k not in FREE_SETTINGS or k in RESULT_SETTINGS}


def require_inputs(folder: Path, inputs: dict[str, str] | None) -> None:
    """Refuse a run in `folder` that was begun with other inputs; its results are not results of these."""
    earlier = read_run(folder).get("inputs")
    if earlier != inputs:
        raise UserError(
            f"{folder} belongs to other data: {_first_difference(earlier or {}, inputs or {})}; bring back what it was "
            "begun with, choose another name or folder, or remove this one"
        )


def _first_difference(earlier: dict[str, str], now: dict[str, str]) -> str:
    name = min(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))
    return f"{name} {'is new' if name not in earlier else 'is missing' if name not in now else 'has changed'}"


def _plain(settings: dict) -> dict:
    """Settings as JSON gives them back: tuples as lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
