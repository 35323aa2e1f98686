"""The direction of imports, read from the syntax trees."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from tests.running import ROOT

# A package imports from those behind it and from itself, never from those before it.
ORDER = ["report", "runner", "models", "augmentation", "data", "utils"]
WITHIN = {"data": ["slices", "restore", "phantom", "prepare", "batches", "scans", "files"]}
PACKAGES = {"augmentation", "data", "models", "report", "runner", "utils"}


def sources() -> dict[str, Path]:
    """The files of the packages by their dotted names."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def imports_of(file: Path, known: set[str]) -> set[str]:
    """The modules of the project that a file imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in known}


def graph() -> dict[str, set[str]]:
    files = sources()
    return {name: imports_of(file, set(files)) for name, file in files.items()}


def test_nothing_imports_upwards():
    for name, imported in graph().items():
        for other in imported:
            order, one, two = ORDER, name.split("."), other.split(".")
            if one[0] == two[0] and one[0] in WITHIN:
                order, one, two = WITHIN[one[0]], one[1:], two[1:]
            assert order.index(one[0]) <= order.index(two[0]) or one[0] == two[0], f"{name} imports {other}"


def test_no_file_imports_one_that_imports_it():
    TopologicalSorter(graph()).prepare()


def test_nothing_but_commands_imports_the_command_line():
    for name, imported in graph().items():
        if not name.startswith("utils.cli") and not name.endswith("__main__"):
            assert not any(other.startswith("utils.cli") for other in imported), name


def test_settings_travel_without_the_parser_s_namespace():
    for name, file in sources().items():
        if name.startswith("utils.cli") or name.endswith("__main__"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert "args" not in {argument.arg for argument in arguments}, f"{name}.{node.name}"
