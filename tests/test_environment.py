"""What a machine has that another has not: locks, a home folder, streams, a display, someone who presses Ctrl-C."""

import builtins
import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cross_validation
import strokeformer
import test_strokeformer
import train_rpn
import train_strokeformer
from models.checkpoints import load_rpn, read_checkpoint
from models.training.tracking import wandb_mode
from tests.running import BARE, GRID, ROOT
from utils import cli
from utils.errors import UserError
from utils.files import expanded, locked, read_scores, update_table
from utils.progress import map_in_order

ROW = pd.DataFrame({"dice": [0.5]})


def start_python(*words, **variables) -> subprocess.Popen:
    environment = {**BARE, "PYTHONPATH": str(ROOT), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


# --- locks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_tables_are_written_where_there_are_no_locks_and_a_line_says_so(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for name in ("a", "b"):
        update_table(tmp_path / "scores.csv", name, ROW)
    assert list(read_scores(tmp_path / "scores.csv").model_name) == ["a", "b"]
    line = f"{tmp_path} has no locks: let one program at a time write into it\n"
    assert capsys.readouterr().out == line and list(tmp_path.iterdir()) == [tmp_path / "scores.csv"]


def test_lock_that_cannot_be_had_for_another_reason_is_refused(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"scores\.csv cannot be written \(Input/output error\)"):
        update_table(tmp_path / "scores.csv", "a", ROW)


def test_lock_is_open_to_a_second_user_whatever_the_umask(tmp_path):
    mask = os.umask(0o077)
    with locked(tmp_path / "scores.csv"):
        assert (tmp_path / ".scores.csv.lock").stat().st_mode & 0o777 == 0o666
    assert os.umask(mask) == 0o077 and not any(tmp_path.iterdir())


def test_lock_that_was_waited_for_is_that_of_the_file_in_its_place(tmp_path, monkeypatch):
    """As on NFS, where a removed file that others have open stays under another name."""
    place = tmp_path / ".scores.csv.lock"
    waiting, inodes = fcntl.flock, []

    def flock(descriptor, operation):
        inodes.append(os.fstat(descriptor).st_ino)
        waiting(descriptor, operation)

    def wait_and_lock() -> bool:
        with locked(tmp_path / "scores.csv"):
            return inodes[-1] == place.stat().st_ino

    monkeypatch.setattr(fcntl, "flock", flock)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "scores.csv"):
            other = pool.submit(wait_and_lock)
            while len(inodes) < 2:
                pass
            monkeypatch.setattr(Path, "unlink", lambda path, **_: path.rename(tmp_path / f".nfs{len(inodes)}"))
        assert other.result(timeout=60) and len(inodes) == 3


# --- paths ---------------------------------------------------------------------------------------------


def test_home_folder_stands_for_its_sign_everywhere_in_an_argument(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.args").write_text("--brains_dir ~/brains '~/more brains'\n")
    words = ["@~/my.args", "--scans", "~/a.nii", "b~", "--ckpt_path=~/net.ckpt", "--scores_dir=~"]
    settings = test_strokeformer.parse_args(words)
    assert settings.brains_dir == (f"{tmp_path}/brains", f"{tmp_path}/more brains")
    assert settings.scans == (f"{tmp_path}/a.nii", "b~") and settings.ckpt_path == (f"{tmp_path}/net.ckpt",)
    assert settings.outputs.scores_dir == str(tmp_path)


def test_home_folder_that_is_unknown_is_refused(capsys):
    with pytest.raises(UserError, match=r"home folder of ~nobody7/a is unknown; give the whole path, or \./~nobody7"):
        expanded("~nobody7/a")
    with pytest.raises(SystemExit):
        test_strokeformer.parse_args(["--scans", "~nobody7/a"])
    said = capsys.readouterr().err
    assert "argument --scans: the home folder of ~nobody7/a is unknown" in said and said.count("\n") == 1


def test_home_folder_stands_for_its_sign_in_python(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    mask = np.zeros((1, 4, 5, 6), np.uint8)
    mask[0, 1, 2, 3] = 1
    np.save(tmp_path / "a_mask.npy", mask)
    assert strokeformer.scores("~/a_mask.npy", "~/a_mask.npy")["dice"] == 1
    assert strokeformer.read_image("~/a_mask.npy").shape == (4, 5, 6)
    with pytest.raises(UserError, match=f"checkpoint {tmp_path}/none.ckpt does not exist"):
        load_rpn("~/none.ckpt")


def test_checkpoint_without_permission_is_not_called_broken(tmp_path, monkeypatch):
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}}, path)
    usual = builtins.open

    def refuse(file, *args, **kwargs):
        if file == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(UserError) as refused:
        read_checkpoint(path)
    assert str(refused.value) == f"checkpoint {path} cannot be read (Permission denied); allow it: chmod a+r {path}"


# --- variables -----------------------------------------------------------------------------------------

SIDES = [word for name in ("train_scans", "train_masks", "val_scans", "val_masks") for word in (f"--{name}", "none")]
TRAININGS = {
    train_rpn: [*SIDES, "--model_prefix", "a"],
    train_strokeformer: [*SIDES, "--model_prefix", "a"],
    cross_validation: ["--scans_dir", "none", "--masks_dir", "none", "--model_prefix", "a", "--rpn_model_prefix", "b"],
}


@pytest.mark.parametrize("script", TRAININGS, ids=lambda script: script.__name__)
def test_mode_that_wandb_does_not_know_is_refused_first_where_wandb_is_asked_for(script, monkeypatch):
    def refusal(*words) -> str:
        with pytest.raises(UserError) as refused:
            script.main(script.parse_args([*TRAININGS[script], *words]))
        return str(refused.value)

    for mode in ("off", "false", "nonsense"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert refusal() == f"WANDB_MODE is '{mode}'; set it to online, offline, disabled, or unset it"
        assert "none does not exist" in refusal("--logger", "csv")
    for mode in ("Offline", "dryrun", "RUN", ""):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert "none does not exist" in refusal()


def test_another_variable_that_wandb_does_not_take_is_named(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "perhaps")
    with pytest.raises(UserError, match=r"^WANDB_SILENT: Input should be a valid boolean, .*; correct or unset it$"):
        wandb_mode(offline=True)


def test_backend_of_pictures_does_not_matter():
    program = "import augmentation.__main__, data.prepare.__main__; from utils import cli; cli.run(lambda s: %s, dict)"
    process = start_python(sys.executable, "-c", program % "__import__('utils.plots')", MPLBACKEND="nonsense")
    assert (process.communicate()[1], process.returncode) == ("", 0)


# --- streams and signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(cohort, tmp_path, closed):
    """Nor does a path that the shell has not expanded."""
    slices = [sys.executable, "-m", "data.slices", "--masks_dir", cohort / "Masks", *GRID, "--scans_dir"]
    for scans, code in ((cohort / "Scans", 0), (tmp_path, 2)):
        words = [*slices, scans, "--out_dir=~/slices"]
        process = start_python("sh", "-c", f'exec "$@" {closed}', "sh", *map(str, words), HOME=str(tmp_path))
        said = "".join(process.communicate())
        assert process.returncode == code and "error" not in said
    assert "Cut into" not in (tmp_path / "slices/slices.csv").read_text()


def test_ctrl_c_ends_with_one_line(capsys):
    def interrupt(settings):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        cli.run(interrupt, dict)
    assert ended.value.code == 130 and capsys.readouterr().err.endswith(": stopped\n")


def test_ctrl_c_ends_the_worker_processes_without_a_word():
    program = (
        "import sys, time; from utils import cli; from utils.progress import map_in_order\n"
        "def main(settings):\n"
        "    for _ in map_in_order(time.sleep, [0, 0, 60, 60, 60], 2, 'Work'): print('begun', flush=True)\n"
        "cli.run(main, dict)"
    )
    process = start_python(sys.executable, "-c", program)
    assert process.stdout.readline() == "begun\n" and process.stdout.readline() == "begun\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "-c: stopped\n" and process.returncode == 130


class Weighed:
    """The absolute value, which counts how often it was sent to another process."""

    sent = 0

    def __reduce__(self):
        Weighed.sent += 1
        return partial, (abs,)


def test_work_goes_to_each_process_once_and_not_with_each_of_its_items():
    assert list(map_in_order(Weighed(), range(-9, 0), 2, "Work")) == [*range(9, 0, -1)]
    assert Weighed.sent <= 2
