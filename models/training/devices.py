"""The devices of a training: GPUs or, without any, as many processes on the CPU; several train by Lightning's DDP.

Lightning spawns a process for each; all that comes before and after a training stays in the process of the script.
"""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from models.precision import use_precision
from models.rpn.module import RPN
from models.training.stop import SIGNALS, Stopped
from utils.errors import UserError


def require_devices(devices: Sequence[int]) -> None:
    """Refuse GPUs that are not there."""
    gpus = torch.cuda.device_count()
    if gpus and (beyond := [device for device in devices if device >= gpus]):
        raise UserError(f"--devices {beyond[0]}: this machine has {gpus} GPUs, from 0 to {gpus - 1}")


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
