"""Several processes learn what one learns from the same batches."""

import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import distributed

import train_strokeformer
from data.batches.sampling import SharedBatches
from models.precision import autocast, use_precision
from models.rpn.module import RPN
from models.training.processes import launch, require_devices
from models.training.shared_batch import processes, share_batch_norms
from tests.running import GRID, ROI, run_script
from utils.errors import UserError
from utils.files import read_json

TWO = ["--devices", "0", "1", "--strategy", "ddp"]
ON_TWO = Namespace(devices=[0, 1], strategy="ddp", num_nodes=1)


@pytest.mark.parametrize(("items", "batch_size", "count"), [(10, 4, 2), (9, 4, 2), (7, 6, 3), (5, 4, 4)])
def test_processes_share_each_batch_with_nothing_twice_and_nothing_left_out(items, batch_size, count):
    loaders = [SharedBatches(range(items), batch_size, rank, count) for rank in range(count)]
    steps = zip(SharedBatches(range(items), batch_size), *loaders, strict=True)
    for index, (batch, *parts) in enumerate(steps):
        shares = [loader.share(index) for loader in loaders]
        own = [part[: share.own] for part, share in zip(parts, shares, strict=True)]
        assert [item for part in own for item in part] == batch and all(parts)
        assert own == [batch[share.place : share.place + share.own] for share in shares]
        assert {share.whole for share in shares} == {len(batch)}


# --- stage 1 -------------------------------------------------------------------------------------------


def two_steps(file: Path, count: int) -> None:
    """Two steps of plain gradient descent by each of `count` processes, on a batch of 4 slices and on one of 1, of
    which the second process has nothing; stores the weights.

    In double precision: an untrained detector has so many equal scores that rounding decides which boxes it keeps.
    """
    rank = int(os.environ["LOCAL_RANK"]) if count > 1 else 0
    if count > 1:
        distributed.init_process_group("gloo", rank=rank, world_size=count)
    use_precision("32-true")
    torch.manual_seed(0)
    batches = SharedBatches(range(5), 4, rank, count)
    model = AloneRPN(image_size=64, slice_side=32).double().train()
    model.stand_in = SimpleNamespace(training=True, train_dataloader=SimpleNamespace(batch_sampler=batches))
    if count > 1:
        share_batch_norms(model)
    images = torch.rand(5, 1, 32, 32, dtype=torch.float64)
    images[:2, :, :9] = 0  # the window of the heads is that of all
    box = torch.tensor([[8.0, 8, 20, 24]], dtype=torch.float64)
    for index, batch in enumerate(batches):
        torch.manual_seed(index)
        model.zero_grad()
        targets = [{"boxes": box + i, "labels": torch.ones(1, dtype=torch.int64)} for i in batch]
        model.training_step(([images[i] for i in batch], targets), index).backward()
        for parameter in model.parameters():
            if count > 1:
                distributed.all_reduce(parameter.grad)
            parameter.data -= 0.01 * parameter.grad / count
    if rank == 0:
        torch.save(model.state_dict(), file)


class AloneRPN(RPN):
    """Without a trainer and its logs."""

    trainer = property(lambda model: model.stand_in)

    def log_dict(self, *args, **kwargs) -> None:
        pass


def test_two_processes_train_stage_1_like_one(tmp_path):
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    two_steps(one, 1)
    launch(partial(two_steps, two, 2), ON_TWO)
    assert furthest(*(torch.load(file, weights_only=True) for file in (one, two))) < 1e-9


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


# --- stage 2 -------------------------------------------------------------------------------------------


def test_two_processes_train_stage_2_like_one(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, devices in {"one": [], "two": TWO}.items():
        settings = [
            *["--train_scans", workspace.scans, "--train_masks", workspace.masks, "--val_scans", workspace.scans],
            *["--val_masks", workspace.masks, "--model_prefix", name, "--max_epochs", 1, "--batch_size", 10, *GRID],
            *[*ROI, "--window_size", 16, 16, 16, "--arch_size", "tiny", "--transforms", "flip", "noise", "--logger"],
            *["csv", "--cls_loss", "BCEWithLogitsLoss", "--ema_decay", 0.9, "--num_samples", 1, "--devices", 0],
            *["--lesion_threshold", 0.5, "--smallest_lesion_cm3", 0, "--precision", "32-true", *devices],
        ]
        train_strokeformer.main(train_strokeformer.parse_args(list(map(str, settings))))
    folders = [tmp_path / "StrokeFormer" / name for name in ("one", "two")]
    states = [torch.load(folder / "checkpoints/best.ckpt", weights_only=True) for folder in folders]
    assert states[0]["global_step"] == states[1]["global_step"] > 2
    assert furthest(*(state["state_dict"] for state in states)) < 1e-5
    pd.testing.assert_frame_equal(
        *(pd.read_csv(folder / "logs/version_0/metrics.csv") for folder in folders), atol=1e-4
    )
    assert all((folders[1] / name).exists() for name in ("loss_curves.png", "decisions.csv", "finished.json"))


# --- a whole run ---------------------------------------------------------------------------------------


def test_a_fold_of_two_processes_is_that_of_one_in_double_precision(cohort, tmp_path):
    for name, devices in {"one": ["--devices", 0], "two": TWO}.items():
        (tmp_path / name).mkdir()
        run_script(
            *["cross_validation.py", "--scans_dir", cohort / "Scans", "--masks_dir", cohort / "Masks", "--k", 2],
            *["--splits", 34, 16, 50, "--folds_to_run", 0, "--model_prefix", "seg", "--rpn_model_prefix", "rpn", *GRID],
            *[*ROI, "--window_size", 16, 16, 16, "--arch_size", "tiny", "--batch_size", 4, "--max_epochs", 3],
            *["--transforms", "flip", "noise", "--cls_loss", "BCEWithLogitsLoss", "--ema_decay", 0.9, "--max_lr", 1e-3],
            *["--rpn_image_size", 64, "--rpn_batch_size", 8, "--rpn_max_epochs", 2, "--rpn_lr", 1e-3],
            *["--score_threshold", 0.01, "--num_samples", 1, "--n_predictions", 0, "--logger", "csv"],
            *["--precision", "64-true", "--deep_supervision", *devices],
            cwd=tmp_path / name,
        )
    one, two = tmp_path / "one", tmp_path / "two"
    for run in ("StrokeFormer/seg_fold-0", "RPN/rpn_fold-0"):
        states = [torch.load(folder / run / "checkpoints/last.ckpt", weights_only=True) for folder in (one, two)]
        assert states[0]["global_step"] == states[1]["global_step"] > 2
        assert furthest(*(state["state_dict"] for state in states)) < 1e-9
        require_same_tables(*(folder / run / "logs/version_0/metrics.csv" for folder in (one, two)))
    for table in ("scores/per_scan_scores.csv", "scores/per_lesion_scores.csv", "rpn_scores/scores.csv"):
        require_same_tables(one / table, two / table)
    trained = two / "StrokeFormer/seg_fold-0"
    assert all((trained / name).exists() for name in ("loss_curves.png", "decisions.csv", "finished.json"))


def require_same_tables(one: Path, other: Path) -> None:
    pd.testing.assert_frame_equal(pd.read_csv(one), pd.read_csv(other), rtol=0, atol=1e-4)


# --- refusals ------------------------------------------------------------------------------------------


def test_a_mistake_in_one_process_ends_all_in_one_line(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json"):
        launch(partial(read_json, tmp_path / "broken.json"), ON_TWO)


def test_devices_that_do_not_fit_are_refused_in_one_line(workspace, tmp_path):
    scans = ["--train_scans", workspace.slices, "--train_masks", workspace.slice_masks]
    scans += ["--val_scans", workspace.slices, "--val_masks", workspace.slice_masks, "--model_prefix", "x"]
    twice = run_script("train_rpn.py", *scans, "--devices", 0, 0, cwd=tmp_path, code=2)
    assert "--devices: [0, 0] names a device twice" in twice.err and "Traceback" not in twice.err
    with pytest.raises(UserError, match="--rpn_batch_size 7 cannot be split over 2 processes; give a multiple of 2"):
        require_devices(ON_TWO, batch_size=8, rpn_batch_size=7)


def test_several_devices_without_a_gpu_are_one_process_unless_asked_for():
    require_devices(Namespace(devices=[0, 1], strategy="auto", num_nodes=1), batch_size=7)
    assert processes() == 1


# --- precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "on_narrow_maps"),
    [
        ("64-true", torch.float64, torch.float64),
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
