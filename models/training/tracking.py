"""What a training run leaves behind besides its settings: its logs, checkpoints and pictures."""

import logging
import math
import os
import time
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from matplotlib.image import imread
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from tqdm import tqdm

from models.training.processes import devices_of, node_rank, processes_of
from utils.errors import UserError
from utils.progress import duration, on_terminal

LINES_IN_A_LOG = 20
WANDB_TIMEOUT_S = 30  # a server that does not answer within this time does not keep a run waiting

# --- loggers -------------------------------------------------------------------------------------------


def build_loggers(folder: Path, args, rank: int = 0) -> list[Logger]:
    """The logs that ``--logger`` names. The CSV log is always among them: the curves are drawn from it.

    Args:
        rank: of this process among those of the training; the first alone writes.
    """
    if rank:
        return [CSVLogger(folder, name="logs")]  # which writes nothing there; some callbacks want a log
    loggers = [CSVLogger(folder, name="logs"), *_wandb_loggers(folder, args)]
    if "tensorboard" in args.logger:  # without versions: a training that goes on continues its curves
        loggers += [TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)]
    return loggers


def log_pictures(loggers: list[Logger], title: str, paths: list[Path], step: int) -> None:
    """Show PNG files as `title` at a training step, in every log that shows pictures."""
    for logger in loggers:
        if show := SHOW_PICTURES.get(type(logger)):
            show(logger, title, paths, step)


def _show_in_wandb(logger: WandbLogger, title: str, paths: list[Path], step: int) -> None:
    logger.log_image(title, [str(path) for path in paths], step, caption=[path.stem for path in paths])


def _show_in_tensorboard(logger: TensorBoardLogger, title: str, paths: list[Path], step: int) -> None:
    for path in paths:
        logger.experiment.add_image(f"{title}/{path.stem}", imread(path), step, dataformats="HWC")


SHOW_PICTURES = {WandbLogger: _show_in_wandb, TensorBoardLogger: _show_in_tensorboard}


def log_report(folder: Path, args, page: Path, scores: dict[str, float]) -> None:
    """Log the report of a cross-validation with its mean scores, as a W&B run beside those of its trainings.

    Args:
        folder: of the cross-validation.
        page: the report, one HTML file.
    """
    loggers = _wandb_loggers(folder, args)
    for logger in loggers:
        import wandb

        logger.experiment.log({**scores, "report": wandb.Html(page.read_text(), inject=False)})
    close_loggers(loggers)


def close_loggers(loggers: list[Logger]) -> None:
    """Write what has been logged since the training ended, and end the W&B run."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()  # the next fold's run would otherwise go on in this one


def logged_metrics(folder: Path) -> pd.DataFrame:
    """All metrics a run has logged; every resumption writes a ``metrics.csv`` of its own."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    return pd.concat([pd.read_csv(path) for path in logs], ignore_index=True)


# --- W&B -----------------------------------------------------------------------------------------------


def wandb_mode(offline: bool) -> str:
    """``online``, ``offline`` or ``disabled``: as asked for, as far as this machine allows; says once why not online.

    Args:
        offline: whether the user asked for it on the command line; ``WANDB_MODE`` asks for it too.
    """
    try:
        import wandb
    except ImportError:
        say_once("W&B is not installed: runs are logged without it (pip install wandb).")
        return "disabled"
    os.environ.setdefault("WANDB_SILENT", "true")
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled"
    if offline or asked in ("offline", "dryrun"):
        return "offline"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online"
        say_once("No W&B account on this machine: runs are logged offline (log in with `wandb login`).")
    except wandb.Error as error:
        say_once(f"The W&B account cannot be used ({_first_line(error)}): runs are logged offline.")
    return "offline"


def _wandb_loggers(folder: Path, args) -> list[WandbLogger]:
    """A W&B log that has begun, offline where the server does not take it; none where it is not asked for or broken."""
    mode = wandb_mode(args.offline) if "wandb" in args.logger else "disabled"
    if mode == "disabled":
        return []
    import wandb

    settings = wandb.Settings(silent=True, init_timeout=WANDB_TIMEOUT_S)
    names = {"name": folder.name, "project": args.project, "group": args.group, "entity": args.entity}
    try:
        # Begun here and not by Lightning: now and not in the first epoch, and with a mode that W&B heeds. Lightning's
        # `offline` sets a variable that W&B no longer reads once it has looked for an account.
        run = wandb.init(dir=folder, mode=mode, settings=settings, **names)
    except wandb.Error as error:
        instead = {"online": "offline", "offline": "disabled"}[mode]
        say_once(f"W&B does not take this run ({_first_line(error)}): it is {instead} from here on.")
        os.environ["WANDB_MODE"] = instead  # the next fold does not wait for it again
        return _wandb_loggers(folder, args)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return [WandbLogger(save_dir=folder, experiment=run)]


@cache
def say_once(message: str) -> None:
    print(message)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


# --- callbacks -----------------------------------------------------------------------------------------


class SeededSteps(pl.Callback):
    """Seeds torch anew for each batch, so that a resumed training draws what it would have drawn without a stop.

    Items draw by their own seeds (`item_rng`); this is for what networks draw, such as dropout and the
    anchors that a detector learns from. Lightning resumes the weights, but not torch's generator.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        self._seed(trainer.current_epoch, batch_index)

    def on_validation_batch_start(self, trainer, module, batch, batch_index, dataloader_index=0) -> None:
        self._seed(trainer.current_epoch, batch_index)

    def _seed(self, *place: int) -> None:  # alike in all processes: what stage 1 draws goes by the image's place
        torch.manual_seed(int(np.random.SeedSequence([self.seed, *place]).generate_state(1, np.uint64)[0]))


class FiniteLoss(pl.Callback):
    """Stops a run whose loss has become NaN or infinite, before it spends the night on nothing."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if not torch.isfinite(outputs["loss"]):
            raise UserError(f"the training loss is not finite at step {trainer.global_step}; lower the learning rate")


class EpochLines(pl.Callback):
    """A bar for the epoch that runs, and a line for each that has ended: losses, the watched value, time left.

    A log file gets at most `LINES_IN_A_LOG` lines a training, and no bar.

    Args:
        name: of the run.
        monitor: the logged value that tells the best epoch.
    """

    def __init__(self, name: str, monitor: str) -> None:
        self.name, self.shown = name, list(dict.fromkeys(["train_loss", "val_loss", monitor]))
        self.bar, self.started, self.first = None, 0.0, 0

    def on_train_start(self, trainer, module) -> None:
        self.started, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_start(self, trainer, module) -> None:
        what = f"{self.name} epoch {trainer.current_epoch + 1}"
        self.bar = tqdm(desc=what, total=trainer.num_training_batches, leave=False, disable=not on_terminal())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        self.bar.update()

    def on_train_epoch_end(self, trainer, module) -> None:
        self.bar.close()
        done, last = trainer.current_epoch + 1, trainer.max_epochs
        if on_terminal() or done == last or done % math.ceil(last / LINES_IN_A_LOG) == 0:
            metrics = trainer.callback_metrics
            values = ", ".join(f"{key} {metrics[key]:.3f}" for key in self.shown if key in metrics)
            left_s = (time.monotonic() - self.started) / (done - self.first) * (last - done)
            left = f"; at most {duration(left_s)} left" if done < last else ""
            print(f"{self.name} epoch {done} of {last}: {values}{left}", flush=True)

    def on_exception(self, trainer, module, exception) -> None:
        if self.bar is not None:
            self.bar.close()


class PredictionPictures(pl.Callback):
    """Draws a few validation predictions now and then, into the run's folder and the logs that show pictures.

    Args:
        draw: from a module to (name, Figure) pairs.
        every: validation epochs between drawings.
    """

    def __init__(self, draw, folder: Path, every: int) -> None:
        self.draw, self.folder, self.every = draw, folder, every

    def on_validation_epoch_end(self, trainer, module) -> None:
        if (trainer.current_epoch + 1) % self.every or not trainer.is_global_zero:
            return
        from utils.plots import save_figure

        paths = []
        for name, figure in self.draw(module):
            paths.append(self.folder / f"epoch-{trainer.current_epoch:03d}" / f"{name}.png")
            save_figure(figure, paths[-1])
        if paths:
            log_pictures(trainer.loggers, "predictions", paths, trainer.global_step)


def build_trainer(
    folder: Path,
    args,
    monitor: str,
    mode: str,
    callbacks: list[pl.Callback],
    plugins: Sequence[object] = (),
) -> pl.Trainer:
    """A Lightning trainer that keeps the best and the last checkpoint, stops early and logs to `folder`.

    Args:
        monitor, mode: the logged value that tells the best epoch, and whether ``"min"`` or ``"max"`` is best.
        plugins: of Lightning.
    """
    _quieten()
    place, rank = _place(args)
    checkpoints = {"dirpath": folder / "checkpoints", "enable_version_counter": False}
    return pl.Trainer(
        default_root_dir=folder,
        **place,
        plugins=list(plugins),
        accumulate_grad_batches=args.accumulate_grad_batches,
        max_epochs=args.max_epochs,
        logger=build_loggers(folder, args, rank),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        enable_progress_bar=False,  # `EpochLines` takes its place
        callbacks=[
            SeededSteps(args.seed),
            ModelCheckpoint(filename="best", monitor=monitor, mode=mode, **checkpoints),
            ModelCheckpoint(filename="last", **checkpoints),  # `save_last` would be content with the best
            EarlyStopping(monitor, min_delta=args.min_delta, patience=args.patience, mode=mode),
            LearningRateMonitor(args.lr_logging_interval),
            *([] if rank else [EpochLines(folder.name, monitor)]),
            FiniteLoss(),
            *callbacks,
        ],
    )


def _place(args) -> tuple[dict, int]:
    """Lightning's arguments on where a training runs, and the rank of this process there."""
    on_gpu = torch.cuda.is_available()
    accelerator = "gpu" if on_gpu else "cpu"
    if processes_of(args) == 1:
        return {"accelerator": accelerator, "devices": args.devices if on_gpu else 1}, 0
    place = {"accelerator": accelerator, "devices": args.devices if on_gpu else devices_of(args)}
    # Our loaders split the batches, and batch norms share their statistics as they are made: nothing is left to bring
    # into line in each step. `models.training.processes` has started this process, so SLURM is not asked for its place.
    strategy = DDPStrategy(broadcast_buffers=False, cluster_environment=LightningEnvironment())
    place |= {"num_nodes": args.num_nodes, "strategy": strategy, "use_distributed_sampler": False}
    return place, node_rank() * devices_of(args) + int(os.environ["LOCAL_RANK"])


def _quieten() -> None:
    """Silence advice that a user of these scripts cannot follow."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", ".*use `self.log.*sync_dist=True.*")  # the same on all processes already
    warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated.*")  # by a name that torch 2.11 has not
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides.*")  # of channels-last kernels
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
