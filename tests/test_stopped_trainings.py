"""Trainings that are stopped by signals, whose workers are killed or lack room, or that another launcher started."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.multiprocessing import ProcessRaisedException

from data.batches import workers
from data.batches.datamodules import EpochSampler, TrainingData, batch_loader
from data.batches.sources import scan_loader
from data.batches.workers import require_room, size_of_batch
from data.scans.grid import Grid
from data.settings import Loading
from models.training import runs
from models.training.devices import SIGNALS, Stopped, stoppable
from models.training.fit import Task, train
from models.training.settings import Logging, Run, StrokeFormerTraining
from tests.running import BARE, GRID, ROI, ROOT, run_script, start_script, wait_for
from utils import cli
from utils.errors import UserError

ITEMS, EPOCHS = 8, 4


@pytest.fixture(autouse=True)
def handlers():
    """Stopped trainings leave the signals to the operating system."""
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGCHLD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Numbers:
    """Items that are numbers, by keys of an `EpochSampler`."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor([key[1]], dtype=torch.float32) / ITEMS


class Data(TrainingData):
    def __init__(self, num_workers: int) -> None:
        super().__init__(Loading(batch_size=2, num_workers=num_workers), None, 0)

    def train_dataloader(self):
        sampler = EpochSampler(lambda rng: rng.permutation(ITEMS), 0, self.first_epoch)
        return batch_loader(Numbers(), sampler, self.loading)

    def val_dataloader(self):
        return batch_loader(Numbers(), [(0, index) for index in range(ITEMS)], self.loading)


class Network(pl.LightningModule):
    """Meets with `mishap` in the second batch of its third epoch, once."""

    def __init__(self, mishap=None) -> None:
        super().__init__()
        self.layer, self.mishap = nn.Linear(1, 1), mishap

    def training_step(self, batch, index):
        if self.mishap and self.global_rank == self.trainer.world_size - 1 and (self.current_epoch, index) == (2, 1):
            self.mishap()
        loss = (self.layer(batch) + torch.rand(1) - 1).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.layer(batch).square().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def draw_nothing(module) -> list:
    return []


def task(folder: Path, mishap=None, num_workers: int = 0, epochs: int = EPOCHS, devices=(0,)) -> Task:
    """A training of seconds, with the logs, callbacks and files of the real ones."""
    run = Run(model_prefix="a", default_root_dir=str(folder), max_epochs=epochs, patience=EPOCHS)
    settings = StrokeFormerTraining(seed=3, run=run, logging=Logging(logger=("csv",), devices=devices))
    torch.manual_seed(1)
    parts = Network(mishap), Data(num_workers), settings, {}, Grid((1, 8, 8, 8)), None, ("val_loss", "min")
    return Task("a", *parts, draw_nothing, print)


def stopped_line(number: int) -> str:
    return f"a was stopped by {signal.Signals(number).name}; the same command goes on after epoch 2\n"


# --- signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_ends_a_training_that_then_goes_on_as_if_there_had_been_none(tmp_path, capfd, number):
    def signal_all() -> None:  # as a terminal does, and SLURM: the whole group
        for process in active_children():
            os.kill(process.pid, number)
        time.sleep(0.2)
        os.kill(os.getpid(), number)

    train(task(tmp_path / "whole"))
    with pytest.raises(SystemExit) as ended:
        train(task(tmp_path / "parts", signal_all, num_workers=2))
    assert ended.value.code == 128 + number
    assert capfd.readouterr().err == stopped_line(number)
    del ended
    gc.collect()
    assert not active_children()
    train(task(tmp_path / "parts", num_workers=2))
    whole, parts = (torch.load(tmp_path / name / "a" / runs.LAST, weights_only=True) for name in ("whole", "parts"))
    assert whole["epoch"] == parts["epoch"] == EPOCHS - 1
    assert all(torch.equal(whole["state_dict"][name], parts["state_dict"][name]) for name in whole["state_dict"])


def stop_the_script() -> None:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(100)


def test_signal_ends_a_training_on_several_devices_with_all_its_processes_and_it_goes_on(tmp_path, capfd):
    started = time.monotonic()
    with pytest.raises(Stopped) as ended:
        train(task(tmp_path, stop_the_script, devices=(0, 1)))
    assert ended.value.code == 128 + signal.SIGTERM and time.monotonic() - started < 90
    assert capfd.readouterr().err == stopped_line(signal.SIGTERM)
    for process in active_children():
        process.join(10)
    assert not active_children()
    train(task(tmp_path, devices=(0, 1)))
    assert torch.load(tmp_path / "a" / runs.LAST, weights_only=True)["epoch"] == EPOCHS - 1


def test_signal_that_is_ignored_from_the_start_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with stoppable() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.number


def __init__(self) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def __del__(self) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", ["__init__", "__del__"])
def test_signal_while_a_loader_begins_or_ends_its_workers_is_taken_at_the_next_batch(method):
    loader = type("Loader", (), {method: globals()[method]})
    with pytest.raises(Stopped), stoppable() as stop:
        loader()
        assert stop.number == signal.SIGTERM
        stop.on_train_batch_start(None, None, None, 0)


def test_fewer_epochs_than_trained_are_refused_in_one_line(tmp_path):
    train(task(tmp_path, epochs=2))
    with pytest.raises(UserError, match=r"^--max_epochs 1, but a has trained 2; give at least that$"):
        train(task(tmp_path, epochs=1))


# --- another launcher ----------------------------------------------------------------------------------


def test_signal_amid_the_writing_of_the_log_leaves_it_readable(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path, name="logs")
    rewrite = logger.experiment._rewrite_with_new_header

    def interrupted(*args) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        rewrite(*args)

    monkeypatch.setattr(logger.experiment, "_rewrite_with_new_header", interrupted)
    with pytest.raises(Stopped), stoppable():
        for step, metrics in enumerate(({"loss": 1.0}, {"loss": 0.5, "val_loss": 0.7})):
            logger.log_metrics(metrics, step)
            logger.save()
    assert runs.logged_metrics(tmp_path).loss.tolist() == [1.0, 0.5]


def test_script_started_by_another_launcher_trains_and_logs_by_itself(cohort, tmp_path):
    scans = ["--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks"]
    run_script("-m", "data.slices", *scans, "--out_dir", "slices", *GRID, cwd=tmp_path)
    sides = [f"--{side}_{kind}=slices/{kind.title()}" for side in ("train", "val") for kind in ("scans", "masks")]
    variables = dict.fromkeys(["RANK", "LOCAL_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"], "1")
    program = start_script(
        *["train_rpn.py", *sides, "--model_prefix", "a", "--image_size", 32, "--batch_size", 8, "--max_epochs", 500],
        *[*ROI, "--num_samples", 0, "--logger", "csv", "--num_workers", 2],
        cwd=tmp_path,
        **{**variables, "SLURM_NTASKS": "5", "WORLD_SIZE": "5", "MASTER_ADDR": "10.255.255.1", "MASTER_PORT": "1"},
    )
    wait_for((tmp_path / "RPN/a/checkpoints/last.ckpt").exists, program)
    program.send_signal(signal.SIGTERM)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 128 + signal.SIGTERM, out + err
    assert err.startswith("a was stopped by SIGTERM; the same command goes on after epoch ") and err.count("\n") == 1
    assert len(runs.logged_metrics(tmp_path / "RPN/a"))


# --- workers of loaders --------------------------------------------------------------------------------


def kill_itself(case) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def load_with_a_killed_worker(settings) -> None:
    list(scan_loader([1, 2], kill_itself, num_workers=1))


def train_with_a_killed_worker(settings) -> None:
    line = "RuntimeError: DataLoader worker (pid(s) 4711) exited unexpectedly"
    raise ProcessRaisedException(f"\n\n-- Process 1 terminated with the following error:\n{line}\n", 1, 4711)


@pytest.mark.parametrize("main", [load_with_a_killed_worker, train_with_a_killed_worker])
def test_killed_worker_ends_a_script_in_one_line(capfd, main):
    with pytest.raises(SystemExit) as ended:
        cli.run(main, lambda: None)
    line = capfd.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert "a worker process of a loader was killed, most likely for memory; lower --num_workers" in line


def test_other_errors_of_a_worker_keep_their_traceback():
    def main(settings) -> None:
        raise RuntimeError("Caught ValueError in DataLoader worker process 0.")

    with pytest.raises(RuntimeError, match="Caught"):
        cli.run(main, lambda: None)


@pytest.fixture
def shared_memory(monkeypatch):
    """Sets how many bytes are free."""
    usage = namedtuple("usage", "free")
    return lambda free: monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage(free))


def test_workers_without_room_in_shared_memory_are_refused(shared_memory):
    shared_memory(2**20)
    require_room(0)
    with pytest.raises(UserError, match=r"--num_workers 2: /dev/shm has 1 MB free, .* need 34 MB; .* --shm-size=1g"):
        require_room(2)
    with pytest.raises(UserError, match="--num_workers 2: /dev/shm has 1 MB free"):
        scan_loader([], print, num_workers=2)


def test_room_is_that_of_two_batches_for_each_worker(shared_memory):
    items = [{"image": np.zeros((1, 100, 100, 100), np.float32), "mask": torch.zeros(1, 100, 100, 100).bool()}] * 3
    assert size_of_batch(items, range(3), batch_size=4) == 4 * 5_000_000
    shared_memory(159_000_000)
    batch_loader(items, range(3), Loading(batch_size=4, num_workers=3))
    with pytest.raises(UserError, match="has 159 MB free, and loader workers need 160 MB"):
        batch_loader(items, range(3), Loading(batch_size=4, num_workers=4))


FEW_FILES = """
import resource
from data.batches.workers import require_room

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1000))
require_room(2)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
require_room(2)
"""


def test_workers_get_all_files_that_a_process_may_open_and_are_refused_where_these_are_few():
    environment = {**BARE, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", FEW_FILES]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "(1000, 1000)\n"
    assert "--num_workers 2: a process may open 64 files, and loader workers need 256; raise" in done.stderr
