"""What made a result: the command line, settings, versions and git commit, kept beside it in ``run.json``."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, write_json
from utils.settings import MAY_DIFFER, RECIPE, TESTS_ANEW, flat, named

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "monai", "numpy", "nibabel", "scikit-image")


def describe_run(settings: Any, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The command line, its recipes, its settings, and the rest of `describe_program`."""
    return {
        "command": sys.argv,
        "recipes": [word.removeprefix(RECIPE) for word in sys.argv if word.startswith(RECIPE)],
        "settings": flat(settings),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        **describe_program(packages),
    }


def describe_program(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """The git commit and the versions that made a result."""
    versions = {package: version(package) for package in packages}
    return {"git_commit": git_commit(), "python": sys.version.split()[0], "versions": versions}


def git_commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` behind where files differ from it; None where git has none."""
    commit = _git("rev-parse", "HEAD")
    return commit and commit + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    if not shutil.which("git"):
        return None
    # Without optional locks: a killed run could leave the repository locked.
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def open_run(folder: Path, settings: Any, inputs: dict[str, str] | None = None, begun: bool = True) -> None:
    """Record a new run in ``run.json``, or refuse one with results (`begun`) that had other settings or inputs.

    `inputs` are digests, by name, of what the run's results depend on; None where these follow them by themselves.
    """
    if begun:
        require_settings(folder, settings)
        require_inputs(folder, inputs)
    if not (begun and (folder / "run.json").exists()):
        write_json(folder / "run.json", {**describe_run(settings), "inputs": inputs})


def save_run(folder: Path, settings: Any) -> None:
    """Write what made a result into ``run.json`` beside it."""
    write_json(folder / "run.json", describe_run(settings))


def read_run(folder: Path) -> dict:
    """The ``run.json`` of a folder; empty where there is none."""
    record = folder / "run.json"
    content = read_json(record) if record.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{record} is no record of a run; remove {folder} or choose another name")
    return content


def require_settings(folder: Path, settings: Any) -> None:
    """Refuse a run in `folder` that was begun with other settings, or by a version that had others."""
    earlier, now, free = read_run(folder).get("settings", {}), flat(settings), named(settings, MAY_DIFFER, TESTS_ANEW)
    remedy = "choose another name or folder, or remove this one"
    if earlier and (other := sorted(earlier.keys() ^ now.keys())):
        raise UserError(f"{folder} holds a run of an earlier version, with other arguments (--{other[0]}); {remedy}")
    for name in sorted(earlier.keys() - free):
        if earlier[name] != now[name]:
            raise UserError(f"{folder} holds a run with --{name} {earlier[name]}, not {now[name]}; {remedy}")


def settings_of_results(settings: Any) -> dict:
    """The settings that decide what an evaluation leaves, given its networks and scans."""
    free = named(settings, MAY_DIFFER)
    return {name: value for name, value in flat(settings).items() if name not in free}


def require_inputs(folder: Path, inputs: dict[str, str] | None) -> None:
    """Refuse a run in `folder` that was begun with other inputs; its results are not results of these."""
    if (recorded := read_run(folder).get("inputs")) == inputs:
        return
    earlier, now = recorded or {}, inputs or {}
    name = min(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))
    change = "is new" if name not in earlier else "is missing" if name not in now else "has changed"
    raise UserError(
        f"{folder} belongs to other data: {name} {change}; bring back what it was begun with, choose another name or "
        "folder, or remove this one"
    )
