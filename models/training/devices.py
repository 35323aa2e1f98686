"""The devices of a training, GPUs or else processes on the CPU, and the signals that stop it, with exit code 128 +
signal. Lightning spawns a process for each device; what comes before and after stays in the process of the script."""

import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from data.batches.workers import require_room
from models.device import use_devices
from models.precision import use_precision
from models.rpn.module import RPN
from models.training.settings import Logging
from utils.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SLURM and docker stop, Ctrl-C, a closed terminal


def use_machine(settings: Logging, num_workers: int) -> None:
    """Refuse GPUs that are not there and workers without room, and compute with ``--precision``."""
    use_devices(settings.devices)
    require_room(num_workers)
    use_precision(settings.precision)


def place_on(devices: Sequence[int]) -> dict:
    """The devices as arguments of a Lightning trainer."""
    on_gpu = torch.cuda.is_available()
    place = {"accelerator": "gpu" if on_gpu else "cpu", "devices": list(devices) if on_gpu else len(devices)}
    if len(devices) == 1:
        return place
    return {**place, "strategy": DDPStrategy(start_method="spawn"), "sync_batchnorm": on_gpu}  # which a CPU has not


def fit_on_devices(
    trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, resume_from: Path | None
) -> None:
    """``trainer.fit``; errors of several processes are raised as those of one, a killed process as a `UserError`."""
    try:
        trainer.fit(model, data, ckpt_path=resume_from, weights_only=True)
    except ProcessRaisedException as error:
        # Of what the process raised torch hands over the traceback, whose last line says it.
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind.endswith(UserError.__name__):
            raise UserError(message) from error
        if system := re.fullmatch(r"\[Errno (\d+)\] (.+)", message):  # a full disk
            raise OSError(int(system[1]), system[2]) from error
        raise
    except ProcessExitedException as error:
        if -error.exit_code in SIGNALS:
            raise Stopped(-error.exit_code) from error
        if error.signal_name != signal.SIGKILL.name:
            raise
        raise UserError("a process of the training was killed, most likely for memory; lower --batch_size") from error


class ProcessSettings(pl.Callback):
    """Applies ``--precision`` and ``--compile`` in each process of a training."""

    def __init__(self, precision: str, compiled: bool) -> None:
        self.precision, self.compiled = precision, compiled

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        use_precision(self.precision)
        if self.compiled:
            compile_network(module)


def compile_network(model: pl.LightningModule) -> None:
    """Compile the part of a model that does the most work, in place; where torch cannot, it runs as it is."""
    torch._dynamo.config.suppress_errors = True
    if isinstance(model, RPN):
        model.detector.backbone.compile(dynamic=True)  # slices are cut to their heads: each batch has a size of its own
    else:
        model.get_submodule("net").compile()


class Stopped(SystemExit):
    """The end of a program by a signal; its code is that of a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal_name = signal.Signals(number).name


class Stop(pl.Callback):
    """Takes the signals of a training, here and, handed over by Lightning, in its processes on several devices."""

    def __init__(self) -> None:
        self.process, self.number = os.getpid(), 0

    def take(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a worker of a loader, which is a fork: its owner stops first, and ends it
            signal.signal(number, signal.SIG_DFL)
            signal.alarm(3)
            return
        self.number = number
        signal.signal(signal.SIGCHLD, lambda *_: None)  # or torch would raise that a worker has ended
        for process in active_children():
            if not process.daemon:  # of another device; in a collective operation it would wait for the others
                process.kill()
        # Where an object is begun or ended, such as a loader with its workers, an exception would be printed and lost;
        # where Lightning saves its log, rows of more columns than their header would stay.
        while frame and frame.f_code.co_name not in ("__init__", "__del__", "save"):
            frame = frame.f_back
        if frame is None:
            self.leave()

    def leave(self) -> None:
        if self.number:
            raise Stopped(self.number)

    def on_train_start(self, trainer, module) -> None:
        """Replace Lightning's own handlers, which end a program with exit code 0."""
        listen(self.take if os.getpid() == self.process else signal.SIG_DFL)

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        self.leave()

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_index=0) -> None:
        self.leave()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Raise `Stopped` at a signal from the block, whose trainer gets the callback; after that one ends the program."""
    stop = Stop()
    before = listen(stop.take)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if stop.number else handler)
        stop.leave()  # also where it met with an error, such as of a worker that the signal has ended first


def listen(handler: Any) -> dict[int, Any]:
    """Set the handler of the signals, but for those that are ignored (``nohup``); the handlers before."""
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}
