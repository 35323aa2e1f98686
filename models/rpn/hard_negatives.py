"""Healthy slices on which stage 1 sees lesions, found again before each epoch to learn from (``--hard_negatives``)."""

import numpy as np
import pytorch_lightning as pl
import torch

from data.batches.sampling import healthy_in_epoch
from models.training.shared_batch import from_first

POOL = 2  # how many healthy slices are looked at for each that an epoch holds


class HardNegatives(pl.Callback):
    """Hands the data module the healthy slices of a random pool with the surest detections (hard negative mining).

    Args:
        share: of an epoch's healthy slices that are hard ones, in [0, 1]; the others are drawn as ever.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:  # an untrained network finds nothing hard
            return
        # Found by one process: rounding on other devices could make others choose others.
        trainer.datamodule.hard = from_first(lambda: self._find(trainer, module))

    def _find(self, trainer: pl.Trainer, module: pl.LightningModule) -> np.ndarray:
        data, healthy = trainer.datamodule, np.flatnonzero(~trainer.datamodule.sick)
        in_epoch = healthy_in_epoch(data.sick)
        rng = np.random.default_rng([data.seed, trainer.current_epoch])
        pool = rng.choice(healthy, min(POOL * in_epoch, len(healthy)), replace=False)
        found = module.detect(torch.from_numpy(data.train.image(index)) for index in pool)
        module.train()
        surest = [float(f["scores"][0]) if len(f["scores"]) else 0.0 for f in found]
        return pool[np.argsort(surest)[::-1][: round(self.share * in_epoch)]]
