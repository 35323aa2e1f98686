"""Every command of the documentation is one that its program understands, and every name in its tables is there."""

import argparse
import re
import runpy
import shlex
import sys

import pytest

from tests.running import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Understood(Exception):
    """A program has parsed its command line."""


def commands() -> list[str]:
    """The commands of all pages that start a program of ours, each once: those of shell blocks, and benchmarks."""
    text = "\n".join(page.read_text() for page in PAGES)
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    benchmarks = [command.replace("\n", " ") for command in re.findall(r"`(python benchmarks/[^`]+)`", text)]
    started = [line for line in lines if line.startswith("python ") and not line.startswith("python -c ")]
    return list(dict.fromkeys([*started, *benchmarks]))


def start(command: str, patch: pytest.MonkeyPatch) -> None:
    """Run a command in this process until it has parsed its arguments."""
    _, *words = shlex.split(command, comments=True)
    patch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def stopping(parse):
    """A method of a parser that goes no further once it has parsed."""

    def parsed(*args, **kwargs):
        parse(*args, **kwargs)
        raise Understood

    return parsed


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # where recipes are
    monkeypatch.setattr(sys, "path", [str(ROOT), str(ROOT / "benchmarks"), *sys.path])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
    with pytest.raises(Understood):
        start(command, monkeypatch)


def named_parts() -> list[tuple[str, str]]:
    """(name, files) of the rows of docs/architecture.md that tell which function of which file does something."""
    cells = [line.strip("| ").split(" | ") for line in (ROOT / "docs/architecture.md").read_text().splitlines()]
    rows = [row for row in cells if len(row) == 3 and re.search(r"\.py`|/`", row[2])]
    return [(name, files) for _, names, files in rows for name in re.findall(r"`([\w.]+)`", names)]


@pytest.mark.parametrize(("name", "files"), named_parts())
def test_name_is_in_the_file_that_the_architecture_tells(name, files):
    paths = [ROOT / path for path in re.findall(r"`([^`]+)`", files)]
    code = [file.read_text() for path in paths for file in ([path] if path.is_file() else path.glob("*.py"))]
    assert all(re.search(rf"\b{part}", "\n".join(code)) for part in name.strip(".").split("."))
