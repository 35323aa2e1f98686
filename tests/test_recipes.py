"""Recipes: files of arguments that a command reads before its own."""

import json
import shlex

import pytest

import cross_validation
from tests.running import ROOT, run_script
from utils.settings import flat

RECIPES = sorted((ROOT / "recipes").glob("*.args"))
PATHS = ["--scans_dir", "a", "--masks_dir", "b", "--model_prefix", "c", "--rpn_model_prefix", "d"]


def parse(*words):
    """The settings of cross_validation.py, the script that recipes are for."""
    return cross_validation.parse_args(list(map(str, words)))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_understood_and_each_of_its_lines_changes_something(recipe):
    plain, cooked = flat(parse(*PATHS)), flat(parse(f"@{recipe}", *PATHS))
    lines = [shlex.split(line, comments=True) for line in recipe.read_text().splitlines()]
    names = [words[0].removeprefix("--") for words in lines if words]
    assert len(names) == len(set(names))
    contract = {"scan_dim", "roi_size", "k", "splits"}  # said even where they are the default
    assert all(cooked[name] != plain[name] for name in names if name not in contract)
    assert {name for name in cooked if cooked[name] != plain[name]} <= set(names)


def test_arguments_after_a_recipe_win(tmp_path):
    (tmp_path / "my.args").write_text(
        "--k 3  # folds\n\n# a comment\n--seg_loss_cfg '{\"softmax\": true}'\n--betas 0.8 0.9\n"
    )
    settings = parse(f"@{tmp_path / 'my.args'}", *PATHS, "--k", 2)
    network = settings.training.network
    assert settings.folds.k == 2 and network.seg_loss_cfg == {"softmax": True} and network.betas == (0.8, 0.9)
    assert parse("--k", 2, f"@{tmp_path / 'my.args'}", *PATHS).folds.k == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "my.args"),
        ("--k 'three", 'my.args holds the line "--k \'three"'),
        ("--learning_rate 3", "--learning_rate"),
        ("--k 0", "argument --k"),
    ],
)
def test_missing_or_broken_recipe_is_refused_in_one_line(tmp_path, capsys, content, complaint):
    if content is not None:
        (tmp_path / "my.args").write_text(content)
    with pytest.raises(SystemExit) as ended:
        parse(f"@{tmp_path / 'my.args'}", *PATHS)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and complaint in said and said.count("\n") == 1


def test_byte_order_mark_of_a_recipe_is_no_part_of_it(tmp_path):
    (tmp_path / "my.args").write_text("--k 2\n", "utf-8-sig")
    assert parse(f"@{tmp_path / 'my.args'}", *PATHS).folds.k == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_recipe_in_another_encoding_is_refused_in_one_line(tmp_path, capsys, encoding):
    (tmp_path / "my.args").write_text("--k 2  # Schlaganfälle\n", encoding)
    with pytest.raises(SystemExit) as ended:
        parse(f"@{tmp_path / 'my.args'}", *PATHS)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"recipe {tmp_path / 'my.args'} is not UTF-8; save it in" in said
    assert said.count("\n") == 1


def test_run_records_the_recipe_and_what_it_says(cohort, tmp_path):
    (tmp_path / "my.args").write_text("--scan_dim 1 24 25 29\n")
    done = ["-m", "data.slices", "@my.args", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks"]
    run_script(*done, "--out_dir", "slices", cwd=tmp_path)
    record = json.loads((tmp_path / "slices/run.json").read_text())
    assert record["recipes"] == ["my.args"] and record["settings"]["scan_dim"] == [1, 24, 25, 29]
