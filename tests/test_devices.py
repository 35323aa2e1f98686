"""Several devices: processes that train together on the CPU, what each of them sees, and how their mistakes end."""

import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from data.batches.datamodules import EpochSampler, batch_loader
from data.settings import Loading
from models.checkpoints import load_rpn, load_strokeformer
from models.device import device, use_devices
from models.precision import autocast, precision_on, use_precision
from models.training.devices import fit_on_devices, place_on
from models.training.settings import Logging, Run, StrokeFormerTraining
from models.training.tracking import build_trainer
from tests.running import GRID, ROI, run_script
from utils.errors import UserError
from utils.files import read_json

ITEMS = 6


class Keys:
    """Items that are their own keys."""

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        return torch.tensor(key, dtype=torch.float32)


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return batch_loader(Keys(), EpochSampler(lambda rng: rng.permutation(ITEMS), seed=0), Loading(batch_size=2))

    def val_dataloader(self):
        return batch_loader(Keys(), [(0, index) for index in range(ITEMS)], Loading(batch_size=2))


class Network(pl.LightningModule):
    """Notes which items its process sees."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.layer, self.folder = nn.Linear(2, 1), folder

    def training_step(self, batch, index):
        self._note("train", batch)
        return self.layer(batch).square().mean()

    def validation_step(self, batch, index):
        self._note("val", batch)
        self.log("val_loss", float(self.global_rank), sync_dist=True)

    def _note(self, stage: str, batch: torch.Tensor) -> None:
        with (self.folder / f"{stage}-{self.global_rank}").open("a") as file:
            file.writelines(f"{int(epoch)} {int(item)} {precision_on(self.device)}\n" for epoch, item in batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def train_on_two(folder: Path) -> pl.Trainer:
    logs = Logging(logger=("csv",), min_delta=0.0, precision="bf16-mixed", devices=(0, 1), offline=True)
    settings = StrokeFormerTraining(seed=3, run=Run(max_epochs=2, patience=9), logging=logs)
    trainer = build_trainer(folder, settings, ("val_loss", "min"), [])
    fit_on_devices(trainer, Network(folder), Data(), None)
    return trainer


def noted(folder: Path, stage: str) -> list[pd.DataFrame]:
    """What each process saw."""
    columns = ["epoch", "item", "precision"]
    return [pd.read_csv(folder / f"{stage}-{rank}", sep=" ", names=columns) for rank in (0, 1)]


def test_processes_share_the_items_of_each_epoch_and_of_validation(tmp_path):
    trainer = train_on_two(tmp_path)
    for epoch in (0, 1):
        shares = [set(rows.item[rows.epoch == epoch]) for rows in noted(tmp_path, "train")]
        assert [len(share) for share in shares] == [3, 3] and set.union(*shares) == set(range(ITEMS))
    first, second = noted(tmp_path, "val")
    assert set(first.item) == {0, 2, 4} and set(second.item) == {1, 3, 5}
    assert set(first.precision) == set(second.precision) == {"bf16-mixed"}
    assert trainer.callback_metrics["val_loss"] == 0.5  # the mean of the two


def test_killed_process_is_reported_with_what_to_do():
    def fit(*args, **kwargs):
        raise ProcessExitedException("killed", 1, 4711, -signal.SIGKILL, "SIGKILL")

    with pytest.raises(UserError, match="most likely for memory; lower --batch_size"):
        fit_on_devices(SimpleNamespace(fit=fit), None, None, None)


@pytest.mark.parametrize(
    ("last_line", "kind", "message"),
    [
        ("utils.errors.UserError: a.npy: is broken; fix it", UserError, "^a.npy: is broken; fix it$"),
        ("OSError: [Errno 28] No space left on device", OSError, r"\[Errno 28\] No space left on device"),
        ("ValueError: of a library", ProcessRaisedException, "of a library"),
    ],
)
def test_error_of_one_process_is_raised_as_with_one(last_line, kind, message):
    text = f"\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n{last_line}\n"

    def fit(*args, **kwargs):
        raise ProcessRaisedException(text, 1, 4711)

    with pytest.raises(kind, match=message):
        fit_on_devices(SimpleNamespace(fit=fit), None, None, None)


# --- a whole run ---------------------------------------------------------------------------------------


def test_fold_on_two_devices_leaves_one_set_of_files(cohort, tmp_path):
    run_script(
        *["cross_validation.py", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--k", 2],
        *["--splits", 34, 16, 50, "--folds_to_run", 0, "--model_prefix", "seg", "--rpn_model_prefix", "rpn", *GRID],
        *[*ROI, "--window_size", 16, 16, 16, "--batch_size", 2, "--max_epochs", 1],
        *["--transforms", "flip", "noise", "--cls_loss", "BCEWithLogitsLoss", "--max_lr", 1e-3],
        *["--rpn_image_size", 64, "--rpn_batch_size", 4, "--rpn_max_epochs", 1, "--rpn_lr", 1e-3],
        *["--score_threshold", 0.01, "--num_samples", 1, "--log_every_n_val_epochs", 1, "--n_predictions", 0],
        *["--logger", "csv", "tensorboard", "--precision", "32-true", "--devices", 0, 1],
        cwd=tmp_path,
    )
    for folder in (tmp_path / "RPN/rpn_fold-0", tmp_path / "StrokeFormer/seg_fold-0"):
        assert read_json(folder / "finished.json") == {"max_epochs": 1, "epochs": 1}
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        (log,) = (folder / "logs").iterdir()
        assert set(pd.read_csv(log / "metrics.csv").epoch.dropna()) == {0} and (folder / "loss_curves.png").exists()
    assert {path.name for path in (folder / "predictions").iterdir()} == {"epoch-000"}
    assert load_rpn(tmp_path / "RPN/rpn_fold-0/checkpoints/best.ckpt").hparams.score_threshold == 0.01
    assert load_strokeformer(tmp_path / "StrokeFormer/seg_fold-0/checkpoints/best.ckpt").dtype == torch.float32
    scores = pd.read_csv(tmp_path / "scores/scores.csv")
    assert scores.model_name.tolist() == ["seg_fold-0"] and np.isfinite(scores.dice).all()


# --- refusals ------------------------------------------------------------------------------------------


def test_devices_that_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch):
    twice = run_script("train_rpn.py", "--devices", 0, 0, cwd=tmp_path, code=2)
    assert "--devices: [0, 0] names a device twice" in twice.err and "Traceback" not in twice.err
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    use_devices([1, 0])
    with pytest.raises(UserError, match="--devices 2: this machine has 2 GPUs, from 0 to 1"):
        use_devices([1, 2])
    assert current == [1]


def test_networks_go_to_the_device_asked_for(monkeypatch, workspace):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device() == torch.device("cuda", 1)
    monkeypatch.setattr("models.checkpoints.device", lambda: torch.device("meta"))
    for load, path in ((load_rpn, workspace.rpn), (load_strokeformer, workspace.seg)):
        assert load(path).device == torch.device("meta")


def test_batch_norms_look_at_the_batches_of_all_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place_on([0, 1])["sync_batchnorm"] and "strategy" not in place_on([1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place_on([1]) == {"accelerator": "cpu", "devices": 1} and not place_on([0, 1])["sync_batchnorm"]


# --- precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "on_narrow_maps"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.float32),
    ],
)
def test_networks_compute_in_the_precision_asked_for(name, dtype, on_narrow_maps):
    use_precision(name)
    try:
        with autocast(torch.device("cpu")):
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
        with autocast(torch.device("cpu"), narrowest_map=1):
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == on_narrow_maps
    finally:
        use_precision("auto")


def test_half_precision_of_gpus_is_refused_without_one():
    with pytest.raises(UserError, match="--precision 16-mixed needs a GPU; leave it out"):
        use_precision("16-mixed")
