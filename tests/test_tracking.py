"""Logs: those asked for, and W&B where it is absent, disabled, offline, logged in or unreachable."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import train_rpn
from tests.running import BARE, ROOT

KEY = "0123456789abcdef0123456789abcdef01234567"
# One process imports the libraries and forks a child for each case, since W&B reads its settings once a process.
PROGRAM = """
import json, os, sys
from pathlib import Path
from matplotlib.figure import Figure
from models.training import tracking
from models.training.settings import Logging, Run
from utils.plots import save_figure

tracking.WANDB_TIMEOUT_S = 2
run = Run(model_prefix="a", project="p")
for name, case in json.loads(sys.argv[1]).items():
    sys.stdout.flush()
    if os.fork() == 0:
        os.environ.update(case["variables"])
        logger, offline = case.get("logger", ["wandb", "csv"]), case.get("offline", False)
        logs = Logging(logger=tuple(logger), offline=offline, entity="nobody")
        if case.get("absent"):
            sys.modules["wandb"] = None
        mode = tracking.wandb_mode(offline)
        found = {"mode": mode}
        if mode != "online" or "WANDB_BASE_URL" in os.environ:
            for folder in (Path(name, "fold-0"), Path(name, "fold-1")):
                folder.mkdir(parents=True)
                loggers = tracking.build_loggers(folder, run, logs)
                found["loggers"] = [type(logger).__name__ for logger in loggers]
                if found["loggers"] == ["CSVLogger", "WandbLogger"] and name == "no account":
                    for side in (4, 8):
                        save_figure(Figure((side, 3)), folder / f"{side}.png")
                    tracking.log_pictures(loggers, "pictures", sorted(folder.glob("*.png")), 0)
                if "WandbLogger" in found["loggers"]:
                    sys.modules["wandb"].finish()
            found["offline"] = len(list(Path(name).glob("fold-*/wandb/offline-run-*")))
        print(json.dumps({name: found}))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""
CASES = {
    "no account": {"variables": {}},
    "absent": {"variables": {}, "absent": True},
    "disabled": {"variables": {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}},
    "offline by variable": {"variables": {"WANDB_MODE": "Offline", "WANDB_API_KEY": KEY}},
    "offline by argument": {"variables": {"WANDB_API_KEY": KEY}, "offline": True},
    "broken key": {"variables": {"WANDB_API_KEY": "short"}},
    "logged in": {"variables": {"WANDB_API_KEY": KEY}},
    "csv alone": {"variables": {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "logger": ["csv"]},
    "tensorboard": {"variables": {"WANDB_MODE": "offline"}, "logger": ["tensorboard"]},
    "unreachable": {"variables": {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> tuple[dict, str]:
    """What became of each case, and all that was said."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        cwd=tmp_path_factory.mktemp("wandb"),
        env={**BARE, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    found = {}
    for line in lines:
        found |= json.loads(line) if line.startswith("{") else {}
    assert set(found) == set(CASES), done.stdout + done.stderr
    assert "wandb: WARNING" not in done.stderr
    assert "sizes do not match" not in done.stderr  # of pictures
    return found, "\n".join(line for line in lines if not line.startswith("{"))


def test_without_an_account_runs_are_logged_offline_and_said_so_once(outcomes):
    found, said = outcomes
    assert found["no account"] == {"mode": "offline", "loggers": ["CSVLogger", "WandbLogger"], "offline": 2}
    assert said.count("No W&B account on this machine") == 1


def test_without_the_package_or_with_it_disabled_the_csv_log_is_left(outcomes):
    found, said = outcomes
    for name in ("absent", "disabled"):
        assert found[name] == {"mode": "disabled", "loggers": ["CSVLogger"], "offline": 0}
    assert said.count("W&B is not installed") == 1


def test_whoever_asks_for_offline_gets_it_in_spite_of_an_account(outcomes):
    for name in ("offline by variable", "offline by argument"):
        assert outcomes[0][name] == {"mode": "offline", "loggers": ["CSVLogger", "WandbLogger"], "offline": 2}


def test_with_an_account_runs_go_online(outcomes):
    assert outcomes[0]["logged in"]["mode"] == "online"


def test_account_or_server_that_cannot_be_used_does_not_stop_training(outcomes):
    found, said = outcomes
    assert found["broken key"] == {"mode": "offline", "loggers": ["CSVLogger", "WandbLogger"], "offline": 2}
    assert found["unreachable"]["mode"] == "online" and found["unreachable"]["offline"] == 2
    assert "The W&B account cannot be used" in said and "W&B does not take this run" in said
    assert said.count("W&B does not take this run") == 1  # the second fold does not wait again


def test_logs_are_those_asked_for_and_always_the_csv_log(outcomes):
    found, _ = outcomes
    assert found["csv alone"]["loggers"] == ["CSVLogger"]
    assert found["tensorboard"]["loggers"] == ["CSVLogger", "TensorBoardLogger"]
    assert found["csv alone"]["offline"] == found["tensorboard"]["offline"] == 0


def test_tensorboard_that_is_not_installed_is_refused_before_any_work(monkeypatch, capsys):
    paths = [word for name in ("train_scans", "train_masks", "val_scans", "val_masks") for word in (f"--{name}", "a")]
    command = ["train_rpn.py", "--model_prefix", "a", "--logger", "csv", "tensorboard", *paths]
    monkeypatch.setattr(sys, "argv", command)
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as ended:
        train_rpn.parse_args()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert "argument --logger: tensorboard is not installed; pip install tensorboard" in said
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(__spec__="found"))  # Lightning takes either
    assert train_rpn.parse_args().training.logging.logger == ("csv", "tensorboard")
