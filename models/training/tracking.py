"""The trainer of both stages, its logs and its callbacks."""

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from tqdm import tqdm

from models.checkpoints import CheckpointFiles
from models.device import peak_memory
from models.precision import ScaledGradients
from models.training.devices import ProcessSettings, place_on
from models.training.settings import Logging, RPNTraining, Run, StrokeFormerTraining
from utils.errors import UserError
from utils.plots import save_figure
from utils.progress import duration, on_terminal, print_once

LINES_IN_A_LOG = 20
Draw = Callable[[pl.LightningModule], Iterable[tuple[str, Figure]]]  # pictures by name
WANDB_TIMEOUT_S = 30  # for the server's answer; without it the run is logged offline

# Silences advice that a user of these scripts cannot follow; here, since all processes of a training import this file.
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends the others when one has failed
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own use of torch
warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides.*")  # of channels-last kernels
warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")


def build_loggers(folder: Path, run: Run, logs: Logging) -> list[Logger]:
    """The logs that ``--logger`` names, and always the CSV log: the curves are drawn from it."""
    loggers: list[Logger] = [CSVLogger(folder, name="logs"), *_wandb_loggers(folder, run, logs)]
    if "tensorboard" in logs.logger:  # without versions: a training that goes on continues its curves
        loggers += [TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)]
    return loggers


def log_pictures(loggers: Sequence[Logger], title: str, paths: Sequence[Path], step: int) -> None:
    """Show PNG files as `title` at a training step, in every log that shows pictures."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            pictures = [np.round(imread(path) * 255).astype(np.uint8) for path in paths]  # (H, W, 4)
            largest = np.max([picture.shape for picture in pictures], axis=0)  # W&B shows all in the size of the first
            white = [np.pad(p, [(0, n) for n in largest - p.shape], constant_values=255) for p in pictures]
            logger.log_image(title, white, step, caption=[path.stem for path in paths])
        elif isinstance(logger, TensorBoardLogger):
            for path in paths:
                logger.experiment.add_image(f"{title}/{path.stem}", imread(path), step, dataformats="HWC")


def log_report(folder: Path, run: Run, logs: Logging, page: Path, scores: dict[str, float]) -> None:
    """Log the HTML report of a cross-validation in `folder` and its mean scores, as a W&B run of its own."""
    loggers = _wandb_loggers(folder, run, logs)
    for logger in loggers:
        import wandb

        logger.experiment.log({**scores, "report": wandb.Html(page.read_text(), inject=False)})
    close_loggers(loggers)


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Write what has been logged since the training ended, and end the W&B run: the next fold has its own."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def wandb_mode(offline: bool) -> Literal["online", "offline", "disabled"]:
    """The mode of W&B by ``--offline``, ``WANDB_MODE`` and this machine; prints once why it is not online."""
    try:
        import wandb
    except ImportError:
        print_once("W&B is not installed: runs are logged without it (pip install wandb).")
        return "disabled"
    os.environ.setdefault("WANDB_SILENT", "true")
    if variable := os.environ.get("WANDB_MODE", "").lower():
        os.environ["WANDB_MODE"] = variable  # W&B itself knows small letters only
    if variable == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    try:
        wandb.Settings().update_from_env_vars(dict(os.environ))
    except ValueError as error:
        _, name, reason = str(error).splitlines()[:3]
        raise UserError(f"WANDB_{name.upper()}: {reason.split(' [type')[0].strip()}; correct or unset it") from None
    if offline or variable in ("offline", "dryrun"):
        return "offline"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online"
        print_once("No W&B account on this machine: runs are logged offline (log in with `wandb login`).")
    except wandb.Error as error:
        print_once(f"The W&B account cannot be used ({str(error).splitlines()[0]}): runs are logged offline.")
    return "offline"


def _wandb_loggers(folder: Path, run: Run, logs: Logging) -> list[WandbLogger]:
    """The W&B log of a begun run, offline where the server does not take it; none where it is not wanted or broken."""
    mode = wandb_mode(logs.offline) if "wandb" in logs.logger else "disabled"
    if mode == "disabled":
        return []
    import wandb

    settings = wandb.Settings(silent=True, init_timeout=WANDB_TIMEOUT_S)
    begin = partial(wandb.init, dir=folder, mode=mode, settings=settings)
    try:
        # Not by Lightning, which begins in the first epoch and sets a variable that W&B has read before.
        begun = begin(name=folder.name, project=run.project, group=run.group, entity=logs.entity)
    except wandb.Error as error:
        os.environ["WANDB_MODE"] = "offline" if mode == "online" else "disabled"  # for the next fold, too
        reason = str(error).splitlines()[0]
        print_once(f"W&B does not take this run ({reason}): it is {os.environ['WANDB_MODE']} from here on.")
        return _wandb_loggers(folder, run, logs)
    begun.define_metric("trainer/global_step")
    begun.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return [WandbLogger(save_dir=folder, experiment=begun)]


class SeededSteps(pl.Callback):
    """Seeds torch anew for each batch, so that networks of a resumed training drop out what they would have dropped out
    without a stop; items draw by seeds of their own (`EpochSampler`)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        place = trainer.current_epoch, batch_index, trainer.global_rank
        torch.manual_seed(int(np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)[0]))

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_index=0) -> None:
        self.on_train_batch_start(trainer, module, batch, batch_index)


class FiniteLoss(pl.Callback):
    """Stops a run whose loss has become NaN or infinite."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if not torch.isfinite(outputs["loss"]):
            raise UserError(f"the training loss is not finite at step {trainer.global_step}; lower the learning rate")


class EpochLines(pl.Callback):
    """A progress bar for each epoch, and a line at its end: losses, the monitored value, time left. A log file gets at
    most `LINES_IN_A_LOG` lines a training, and no bar."""

    def __init__(self, name: str, monitor: str) -> None:
        self.name, self.shown = name, list(dict.fromkeys(["train_loss", "val_loss", monitor]))
        self.bar, self.started, self.first = tqdm(disable=True), 0.0, 0

    def on_train_start(self, trainer, module) -> None:
        self.started, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_start(self, trainer, module) -> None:
        title, silent = f"{self.name} epoch {trainer.current_epoch + 1}", not (trainer.is_global_zero and on_terminal())
        self.bar = tqdm(desc=title, total=trainer.num_training_batches, leave=False, disable=silent)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        self.bar.update()

    def on_train_epoch_end(self, trainer, module) -> None:
        self.bar.close()
        done, last = trainer.current_epoch + 1, trainer.max_epochs
        told = on_terminal() or done == last or done % math.ceil(last / LINES_IN_A_LOG) == 0
        if told and trainer.is_global_zero:
            metrics = trainer.callback_metrics
            values = ", ".join(f"{key} {metrics[key]:.3f}" for key in self.shown if key in metrics)
            left_s = (time.monotonic() - self.started) / (done - self.first) * (last - done)
            left = f"; at most {duration(left_s)} left" if done < last else ""
            print(f"{self.name} epoch {done} of {last}: {values}{left}{peak_memory(module.device)}", flush=True)

    def on_exception(self, trainer, module, exception) -> None:
        self.bar.close()


class PredictionPictures(pl.Callback):
    """Draws (name, Figure) pairs of the module into the folder and the logs, `every` so many validation epochs."""

    def __init__(self, draw: Draw, folder: Path, every: int) -> None:
        self.draw, self.folder, self.every = draw, folder, every

    def on_validation_epoch_end(self, trainer, module) -> None:
        if (trainer.current_epoch + 1) % self.every or not trainer.is_global_zero:
            return
        paths, folder = [], self.folder / f"epoch-{trainer.current_epoch:03d}"
        for name, figure in self.draw(module):
            paths.append(folder / f"{name}.png")
            save_figure(figure, paths[-1])
        if paths:
            log_pictures(trainer.loggers, "predictions", paths, trainer.global_step)


def build_trainer(
    folder: Path, settings: RPNTraining | StrokeFormerTraining, monitor: tuple[str, str], callbacks: list[pl.Callback]
) -> pl.Trainer:
    """A Lightning trainer that saves the best and the last checkpoint, stops early and logs; `monitor` as in `Task`."""
    run, logs, (value, mode) = settings.run, settings.logging, monitor
    scaling = [ScaledGradients("16-mixed", "cuda")] if logs.precision == "16-mixed" else []
    checkpoint = partial(ModelCheckpoint, folder / "checkpoints", enable_version_counter=False)
    return pl.Trainer(
        default_root_dir=folder,
        **place_on(logs.devices),
        # In a job of SLURM Lightning would wait for SLURM to start the processes.
        plugins=[*scaling, CheckpointFiles(), LightningEnvironment()],
        max_epochs=run.max_epochs,
        logger=build_loggers(folder, run, logs),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=False,  # `EpochLines` takes its place
        callbacks=[
            ProcessSettings(logs.precision, logs.compile),
            SeededSteps(settings.seed),
            checkpoint("best", value, mode=mode),
            checkpoint("last"),  # `save_last` would be content with the best
            EarlyStopping(value, min_delta=logs.min_delta, patience=run.patience, mode=mode),
            LearningRateMonitor(logs.lr_logging_interval),
            EpochLines(folder.name, value),
            FiniteLoss(),
            *callbacks,
        ],
    )
