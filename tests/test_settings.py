"""Settings: dataclasses that are command line, recipe and Python keywords at once."""

import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module

import pytest

from tests.running import ROOT
from utils import cli
from utils.settings import MAY_DIFFER, TESTS_ANEW, arguments, filled, flat, named, option, part
from utils.validators import pathname, positive_float, positive_int

# Arguments that are free text and no path.
TEXTS = {"model_name", "model_prefix", "models", "project", "group", "entity", "seg_loss", "cls_loss", "target_layers",
         "scan_pattern", "mask_pattern", "groups"}  # fmt: skip


@dataclass(frozen=True)
class Network:
    """Network."""

    lr: float = option(positive_float, "learning rate", 0.1)
    sizes: tuple[int, ...] | None = option(positive_int, "sizes of layers", nargs="+")
    seed: int = option(int, "seed", 1, shared=True)


@dataclass(frozen=True)
class Sources:
    """Sources."""

    file: str | None = option(str, "a file", on_resume=MAY_DIFFER, exclusive="source")
    folder: str | None = option(str, "a folder", on_resume=MAY_DIFFER, exclusive="source")


@dataclass(frozen=True)
class Both:
    """Two networks."""

    name: str = option(str, "name of the run", "", required=True)
    roi_size: tuple[int, int] = option(positive_int, "size", (8, 16), nargs=2)
    config: dict = option(str, "further arguments", {"a": 1})
    pictures: bool = option(None, "draw pictures", False, on_resume=TESTS_ANEW)
    first: Network = part(Network(lr=0.5), "first_")
    second: Network = Network()
    sources: Sources = Sources()


def parse(*words: str) -> Both:
    return cli.parse(Both(), "Trains two networks.", ["--name", "a", *words])


def refused(capsys, *words: str) -> str:
    """The one line that refuses a command line."""
    with pytest.raises(SystemExit) as ended:
        cli.parse(Both(), "Trains two networks.", words)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and err.count("\n") == 1
    return err


def test_defaults_are_those_of_the_settings():
    assert parse() == filled(Both(), {"name": "a"})
    assert parse().first.lr == 0.5 and parse().second.lr == 0.1


def test_prefix_tells_two_parts_of_one_class_apart():
    settings = parse("--first_lr", "2", "--lr", "3")
    assert (settings.first.lr, settings.second.lr) == (2, 3)


def test_parts_share_an_option_without_a_prefix(capsys):
    settings = parse("--seed", "7")
    assert settings.first.seed == settings.second.seed == 7
    assert [argument.name for argument in arguments(settings)].count("seed") == 2  # once in each part
    assert "unrecognized arguments: --first_seed 7" in refused(capsys, "--name", "a", "--first_seed", "7")


def test_values_of_several_words_are_tuples_and_stay_none_where_nothing_is_given():
    settings = parse("--sizes", "1", "2", "3", "--roi_size", "4", "5")
    assert settings.second.sizes == (1, 2, 3) and settings.first.sizes is None
    assert settings.roi_size == (4, 5) and parse().roi_size == (8, 16)


def test_switch_is_off_unless_given():
    assert not parse().pictures and parse("--pictures").pictures


def test_options_that_exclude_each_other_are_refused_together(capsys):
    assert parse("--file", "a").sources == Sources(file="a")
    line = refused(capsys, "--name", "a", "--file", "a", "--folder", "b")
    assert "argument --folder: not allowed with argument --file" in line


def test_required_option_that_is_missing_is_refused(capsys):
    assert "the following arguments are required: --name" in refused(capsys)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--lr", "0"], "argument --lr: "),
        (["--roi_size", "4"], "argument --roi_size: expected 2 arguments"),
        (["--pict"], "unrecognized arguments: --pict"),  # no abbreviations
        (["@absent.args"], "absent.args"),
    ],
)
def test_mistake_is_refused_in_one_line_that_names_it(capsys, words, complaint):
    line = refused(capsys, "--name", "a", *words)
    assert complaint in line and line.endswith("; --help tells more\n")


def test_recipe_fills_arguments_and_later_words_win(tmp_path):
    recipe = tmp_path / "small.args"
    recipe.write_text("# of a small network\n--lr 2  # fast\n\n--roi_size 1 2\n--config 'two words'\n")
    settings = parse(f"@{recipe}", "--lr", "3")
    assert (settings.second.lr, settings.roi_size, settings.config) == (3, (1, 2), "two words")


def test_recipe_with_an_open_quotation_is_refused(capsys, tmp_path):
    recipe = tmp_path / "broken.args"
    recipe.write_text("--name 'a\n")
    assert 'broken.args holds the line "--name \'a"' in refused(capsys, f"@{recipe}")


def test_flat_settings_are_values_by_argument_with_lists_for_tuples():
    assert flat(parse("--sizes", "1", "2")) == {
        "name": "a",
        "roi_size": [8, 16],
        "config": {"a": 1},
        "pictures": False,
        "first_lr": 0.5,
        "first_sizes": None,
        "seed": 1,
        "lr": 0.1,
        "sizes": [1, 2],
        "file": None,
        "folder": None,
    }


def test_named_settings_are_those_that_change_the_same():
    assert named(Both(), MAY_DIFFER) == {"file", "folder"}
    assert named(Both(), MAY_DIFFER, TESTS_ANEW) == {"file", "folder", "pictures"}
    assert {"lr", "first_lr", "seed"} <= named(Both(), None)


def test_filled_settings_leave_the_others_and_the_original_alone():
    settings = Both()
    changed = filled(settings, {"first_lr": 9.0, "seed": 3})
    assert (changed.first.lr, changed.second.lr, changed.second.seed) == (9, 0.1, 3)
    assert settings == Both() and settings.first.lr == 0.5


def test_default_of_a_dictionary_is_a_copy_for_each():
    one, other = Both(), Both()
    one.config["a"] = 2
    assert other.config == {"a": 1}


def test_help_groups_arguments_by_their_class_and_shows_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(Both(), "Trains two networks.", ["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.count("--seed SEED") >= 1
    assert "network of stage 1:" in text and "\nnetwork:" in text and "\nsources:" in text
    assert "learning rate (default: 0.5)" in text and "learning rate (default: 0.1)" in text


def test_every_argument_that_is_a_path_is_read_as_one():
    files = [file for pattern in ("*.py", "*/__main__.py", "*/*/__main__.py") for file in ROOT.glob(pattern)]
    modules = [import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    programs = [module for module in modules if hasattr(module, "Settings")]
    assert len(programs) == 14
    read_as = {a.name: a.option for program in programs for a in arguments(program.Settings())}
    texts = {name for name, option in read_as.items() if option.type is str and "choices" not in option.more}
    assert {name.removeprefix("rpn_") for name in texts} == TEXTS
    paths = {name for name, option in read_as.items() if option.type is pathname}
    assert {"scans", "masks", "brains_dir", "ckpt_path", "regions", "folds", "rpn_backbone_weights", "tables"} <= paths


def test_scripts_import_no_heavy_library_before_they_parse():
    scripts = "cross_validation, train_rpn, train_strokeformer, test_rpn, test_strokeformer, runner.__main__"
    code = f"import sys, {scripts}; print(*{{'numpy', 'scipy', 'pandas', 'torch'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
