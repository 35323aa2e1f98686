"""A training that is stopped goes on as if it had not been: same batches, same chance, same weights."""

from dataclasses import dataclass

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from models.training.fit import move_averages
from models.training.runs import best_checkpoint, resume_point
from models.training.settings import Logging, Run, StrokeFormerTraining
from models.training.tracking import build_trainer
from utils.errors import UserError
from utils.provenance import open_run
from utils.settings import option

EPOCHS = 5


class Network(pl.LightningModule):
    """Draws in training and in validation, and is best after its first epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch, index):
        loss = (self.layers(batch) + torch.rand(1) - 1).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.current_epoch + torch.rand(1).item() / 2)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


class Stop(pl.Callback):
    """The power fails in the middle of an epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if trainer.current_epoch == 3 and batch_index == 1:
            raise InterruptedError


def train(folder, *callbacks) -> dict[str, torch.Tensor]:
    """Train on from what is in the folder; returns the weights."""
    run = Run(model_prefix="a", max_epochs=EPOCHS, patience=EPOCHS)
    settings = StrokeFormerTraining(seed=3, run=run, logging=Logging(logger=("csv",), min_delta=0.0, offline=True))
    torch.manual_seed(1)
    network, images = Network(), torch.arange(32.0).reshape(8, 4) / 32
    torch.manual_seed(torch.seed())  # each process begins somewhere else
    average = WeightAveraging(multi_avg_fn=move_averages)
    trainer = build_trainer(folder, settings, ("val_loss", "min"), [average, *callbacks])
    loaders = DataLoader(images, 2), DataLoader(images, 4)
    trainer.fit(network, *loaders, ckpt_path=resume_point(folder)[0], weights_only=True)
    return network.state_dict()


def test_saved_weights_follow_the_first_steps_closely_and_later_ones_slowly():
    for step, expected in ((1, 9 / 11), (90, 0.09), (10_000, 0.01)):  # the share of the new weights
        averages = [torch.zeros(2)]
        move_averages(averages, [torch.ones(2)], torch.tensor(step))
        torch.testing.assert_close(averages[0], torch.full((2,), expected))


def test_resumed_training_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(tmp_path / "parts", Stop())
    assert torch.load(resume_point(tmp_path / "parts")[0], weights_only=True)["epoch"] == 2  # and not the best, 0
    parts = train(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    best, again = (
        torch.load(best_checkpoint(tmp_path / name), weights_only=True)["state_dict"] for name in ("whole", "parts")
    )
    assert all(torch.equal(best[name], again[name]) for name in best)


@dataclass(frozen=True)
class Settings:
    """A network."""

    max_lr: float = option(float, "learning rate", 0.1)
    roi_size: tuple[int, ...] = option(int, "size", (32, 32, 32), nargs=3)


@dataclass(frozen=True)
class MoreSettings(Settings):
    """A network with an option more."""

    focal: bool = option(None, "switch", False)


def test_a_run_goes_on_with_the_settings_that_it_was_begun_with(tmp_path):
    open_run(tmp_path, Settings())
    open_run(tmp_path, Settings())
    with pytest.raises(UserError, match=r"a run with --max_lr 0\.1, not 0\.2; choose another name or folder"):
        open_run(tmp_path, Settings(max_lr=0.2))


@pytest.mark.parametrize(("begun", "now"), [(MoreSettings(), Settings()), (Settings(), MoreSettings())])
def test_a_run_begun_with_other_options_than_there_are_now_is_refused(tmp_path, begun, now):
    open_run(tmp_path, begun)
    with pytest.raises(UserError, match=r"a run of an earlier version, with other arguments \(--focal\); choose"):
        open_run(tmp_path, now)
