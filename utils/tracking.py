"""What a training run leaves behind besides its settings: W&B and CSV logs, checkpoints and pictures."""

import logging
import os
import warnings
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from utils.errors import UserError

# --- loggers -------------------------------------------------------------------------------------------


def build_loggers(folder: Path, args) -> list:
    """A CSV log in the run's folder and W&B, offline where there is no account."""
    os.environ.setdefault("WANDB_SILENT", "true")
    wandb_logger = WandbLogger(
        name=folder.name,
        save_dir=folder,
        project=args.project,
        group=args.group,
        entity=args.entity,
        offline=args.offline or not has_wandb_account(),
    )
    return [CSVLogger(folder, name="logs"), wandb_logger]


def logged_metrics(folder: Path) -> pd.DataFrame:
    """All metrics a run has logged; every resumption writes a ``metrics.csv`` of its own."""
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    return pd.concat([pd.read_csv(path) for path in logs], ignore_index=True)


def has_wandb_account() -> bool:
    """Whether W&B knows whom to log for; if not, says once that the run stays offline."""
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if wandb.api.api_key:
        return True
    if not has_wandb_account.told:
        print("No W&B account on this machine: runs are logged offline (log in with `wandb login`).")
        has_wandb_account.told = True
    return False


has_wandb_account.told = False


# --- callbacks -----------------------------------------------------------------------------------------


class FiniteLoss(pl.Callback):
    """Stops a run whose loss has become NaN or infinite, before it spends the night on nothing."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if not torch.isfinite(outputs["loss"]):
            raise UserError(f"the training loss is not finite at step {trainer.global_step}; lower the learning rate")


class PredictionPictures(pl.Callback):
    """Draws a few validation predictions now and then, into the run's folder and W&B.

    Args:
        draw: from a module to (name, Figure) pairs.
        every: validation epochs between drawings.
    """

    def __init__(self, draw, folder: Path, every: int) -> None:
        self.draw, self.folder, self.every = draw, folder, every

    def on_validation_epoch_end(self, trainer, module) -> None:
        if (trainer.current_epoch + 1) % self.every or trainer.sanity_checking:
            return
        from utils.plots import save_figure

        for name, figure in self.draw(module):
            path = self.folder / f"epoch-{trainer.current_epoch:03d}" / f"{name}.png"
            save_figure(figure, path)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image("predictions", [str(path)], caption=[name])


def build_trainer(folder: Path, args, monitor: str, mode: str, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A Lightning trainer that keeps the best and the last checkpoint, stops early and logs to `folder`.

    Args:
        monitor, mode: the logged value that tells the best epoch, and whether ``"min"`` or ``"max"`` is best.
    """
    _quieten()
    on_gpu = torch.cuda.is_available()
    checkpoints = ModelCheckpoint(
        folder / "checkpoints", "best", monitor=monitor, mode=mode, save_last=True, enable_version_counter=False
    )
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="gpu" if on_gpu else "cpu",
        devices=args.devices if on_gpu else 1,
        max_epochs=args.max_epochs,
        logger=build_loggers(folder, args),
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_model_summary=False,
        callbacks=[
            checkpoints,
            EarlyStopping(monitor, min_delta=args.min_delta, patience=args.patience, mode=mode),
            LearningRateMonitor(args.lr_logging_interval),
            TQDMProgressBar(refresh_rate=5),
            FiniteLoss(),
            *callbacks,
        ],
    )


def _quieten() -> None:
    """Silence advice that a user of these scripts cannot follow."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
