"""The direction of imports, the size of files and functions, and the two doors, read from the syntax trees."""

import ast
import statistics
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.running import ROOT

# A package imports from those behind it and from itself, never from those before it.
ORDER = ["runner", "report", "models", "augmentation", "data", "utils"]
WITHIN = {"data": ["slices", "restore", "phantom", "prepare", "batches", "scans", "files", "settings"]}
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 300, 60, 8  # lines


def sources() -> dict[str, Path]:
    """The files of the packages by their dotted names."""
    files = [file for package in ORDER for file in (ROOT / package).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def programs() -> list[Path]:
    """The files of the packages and the scripts at the root."""
    return [*sources().values(), *ROOT.glob("*.py")]


def nodes_of(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text()))


def calls_of(name: str, kind: type) -> list[str]:
    """The files that call a function (`ast.Name`) or method (`ast.Attribute`) of this name, once for each call."""
    calls = ((file, node.func) for file in programs() for node in nodes_of(file) if isinstance(node, ast.Call))
    called = ((file, ast.unparse(function)) for file, function in calls if isinstance(function, kind))
    return [str(file.relative_to(ROOT)) for file, function in called if function.split(".")[-1] == name]


def imports_of(file: Path, known: set[str]) -> set[str]:
    """The modules of the project that a file imports, in functions too."""
    found = set()
    for node in nodes_of(file):
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
        for node in nodes_of(file):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert "args" not in {argument.arg for argument in arguments}, f"{name}.{node.name}"


def test_files_and_functions_stay_short():
    lengths = {}
    for file in programs():
        assert len(file.read_text().splitlines()) <= LONGEST_FILE, file
        for node in nodes_of(file):
            if isinstance(node, ast.FunctionDef):
                lengths[file, node.name, node.lineno] = node.end_lineno - node.lineno + 1
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= LONGEST_FUNCTION, longest
    assert statistics.median(lengths.values()) <= MEDIAN_FUNCTION


def test_scans_are_admitted_and_lesions_decided_in_one_place():
    assert calls_of("require_look", ast.Name) == calls_of("brain_cut", ast.Name) == ["data/scans/open.py"]
    assert calls_of("classes", ast.Attribute) == ["models/pipeline.py"]
