"""Where folds run: how a cluster is shared among them, and what is refused before anything runs."""

import json
import os
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from models.cross_validation import launchers
from models.cross_validation.launchers import choose_launcher, cpus_each
from utils.errors import UserError
from utils.files import order_rows, update_table

needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="pip install -r requirements-ray.txt")


@pytest.mark.parametrize(
    ("nodes", "folds", "gpus", "expected"),
    [
        ([(2, 0)], 2, 0, 1),  # two cores: both folds at once, a core each
        ([(2, 0)], 5, 0, 1),
        ([(16, 0)], 5, 0, 3),
        ([(16, 0), (8, 0)], 3, 0, 8),  # two folds on the first node, one on the second
        ([(16, 1)], 5, 1, 16),  # one GPU: one fold at a time, which may have all CPUs
        ([(16, 4)], 5, 1, 4),
        ([(16, 4), (64, 0)], 2, 2, 8),  # the node without GPUs takes no fold
    ],
)
def test_folds_get_the_most_cpus_that_let_as_many_run_at_once(nodes, folds, gpus, expected):
    assert cpus_each(nodes, folds, gpus) == expected


def test_one_after_the_other_is_in_order():
    done = []
    choose_launcher("sequential", [0])(done.append, [2, 0], [])
    assert done == [2, 0]


def test_rows_of_folds_come_into_order_behind_those_of_other_models(tmp_path):
    path = tmp_path / "scores.csv"
    for name in ("fold-1", "other", "fold-0"):
        update_table(path, name, pd.DataFrame({"scan": ["b", "a"], "dice": [0.1, None]}))
    before = path.read_text().splitlines()
    order_rows(path, ["fold-0", "fold-1"])
    assert path.read_text().splitlines() == [before[0], *before[3:5], *before[5:7], *before[1:3]]
    order_rows(tmp_path / "none.csv", ["fold-0"])
    assert not (tmp_path / "none.csv").exists()


# --- refused -------------------------------------------------------------------------------------------


def test_missing_ray_is_refused_with_what_installs_it(monkeypatch):
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Ray is not installed; pip install -r requirements-ray\.txt"):
        choose_launcher("ray", [0])


@pytest.mark.parametrize("address", ["nonsense", "host:", "10.0.0.1:port"])
def test_address_that_is_none_is_refused(monkeypatch, address):
    with pytest.raises(UserError, match=f"RAY_ADDRESS {address} is no HOST:PORT"):
        launchers._require_answer(address)


def test_address_that_does_not_answer_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens there
        with pytest.raises(UserError, match=f"RAY_ADDRESS 127.0.0.1:{port} does not answer"):
            launchers._require_answer(f"127.0.0.1:{port}")


def test_more_gpus_than_a_node_has_are_refused(monkeypatch):
    monkeypatch.setattr(launchers, "_connect", lambda address: None)
    monkeypatch.setattr(launchers, "_nodes", lambda: [(8, 2), (8, 1)])
    with pytest.raises(UserError, match="--devices names 3 GPUs: no node of the cluster has more than 2"):
        choose_launcher("ray", [0, 1, 2])
    with pytest.raises(UserError, match="--devices 1: Ray counts the GPUs of a fold from 0; give 0 to 0"):
        choose_launcher("ray", [1])
    assert choose_launcher("ray", [0]).keywords["gpus"] == 1
    monkeypatch.setattr(launchers, "_nodes", lambda: [(8, 0)])
    assert choose_launcher("ray", [0]).keywords["gpus"] == 0


def test_node_that_does_not_see_the_folders_says_so(tmp_path):
    said = launchers._run_on_node(0, b"", [str(tmp_path), str(tmp_path / "elsewhere")], [])
    assert f"does not see {tmp_path / 'elsewhere'}; Ray's nodes must share a file system" in said


# --- with Ray ------------------------------------------------------------------------------------------


@needs_ray
def test_lost_fold_is_run_again_and_a_mistake_comes_back_as_one_line(tmp_path, monkeypatch):
    def work(number: int) -> None:
        """The first fold is killed once, after it has left something to go on from."""
        begun = tmp_path / f"{number}.begun"
        if not begun.exists():
            begun.touch()
            if number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if number == 9:
            raise UserError("fold 9 cannot be")
        (tmp_path / f"{number}.json").write_text(json.dumps({"in": str(Path.cwd())}))

    monkeypatch.chdir(tmp_path)
    choose_launcher("ray", [0])(work, [0, 1], [tmp_path])
    assert [json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1)] == [{"in": str(tmp_path)}] * 2
    with pytest.raises(UserError) as refused:
        choose_launcher("ray", [0])(work, [9], [])
    assert str(refused.value) == "fold 9 cannot be"
