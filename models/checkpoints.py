"""Checkpoints: marked with the model they hold, loaded without running any code they might carry."""

import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from data.files.nifti import SAME_SIZE
from data.scans.grid import ORIENTATION, Grid, size_text
from models.ensembles import SHARED, RPNEnsemble, StrokeFormerEnsemble
from models.rpn.module import RPN
from models.segmentation.module import StrokeFormer
from utils.defaults import SCAN_DIM
from utils.errors import UserError
from utils.files import atomic_path

Paths = Path | str | Sequence[Path | str]


class MarkCheckpoint(pl.Callback):
    """Writes into each checkpoint what it holds: the model's class name, so that no script takes one stage for the
    other, and the grid and orientation of what it learned from."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        checkpoint["model"] = type(module).__name__
        checkpoint["grid"] = {**asdict(self.grid), "orientation": ORIENTATION}


def load_model(kind: type[pl.LightningModule], path: Path | str) -> pl.LightningModule:
    """The model of a checkpoint in evaluation mode, on the GPU where there is one, with its `Grid` as ``grid``.

    Raises:
        UserError: no such file, no checkpoint, or the checkpoint of another model.
    """
    checkpoint = read_checkpoint(path)
    held = checkpoint.get("model")
    if held != kind.__name__:
        raise UserError(f"{path} is a checkpoint of {held or 'another program'}, not of {kind.__name__}")
    try:
        model = kind(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} does not fit this version of {held} ({reason}); train it anew") from None
    model.grid = _grid_of(checkpoint, path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def read_grid(path: Path | str) -> Grid | None:
    """The grid of a checkpoint, without its network; raises as `read_checkpoint`."""
    return _grid_of(read_checkpoint(path), path)


def _grid_of(checkpoint: dict, path: Path | str) -> Grid | None:
    """The grid that a network learned on; None for a checkpoint that does not tell."""
    if (held := checkpoint.get("grid")) is None:
        return None
    if held["orientation"] != ORIENTATION:
        raise UserError(f"{path} was trained on scans in {held['orientation']}, not {ORIENTATION}; train it anew")
    parts = {name: held[name] and tuple(held[name]) for name in Grid.__dataclass_fields__}
    return Grid(**parts)


def read_checkpoint(path: Path | str) -> dict:
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path} does not exist; give the path of a .ckpt file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a broken or unsafe file
        raise UserError(f"checkpoint {path} cannot be read safely ({type(error).__name__}); train it anew") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of a StrokeFormer model")
    return checkpoint


def load_rpn(path: Paths, score_threshold: float | None = None) -> RPN | RPNEnsemble:
    """The RPN of a checkpoint, or the ensemble of several; `score_threshold` takes the place of their own where given.

    Raises:
        UserError: as `load_model`; for several also as `require_alike`, or a file that is given twice.
    """
    members = _load_members(RPN, path, score_threshold=score_threshold)
    members = tuple(member.to(memory_format=torch.channels_last) for member in members)  # 1.7 times as fast on a CPU
    return members[0] if len(members) == 1 else RPNEnsemble(members)


def load_strokeformer(
    path: Paths, lesion_threshold: float | None = None, smallest_lesion_cm3: float | None = None
) -> StrokeFormer | StrokeFormerEnsemble:
    """The StrokeFormer of a checkpoint, or the ensemble of several; what is lesion, where given, takes the place of
    their own. Raises as `load_rpn`."""
    asked = {"lesion_threshold": lesion_threshold, "smallest_lesion_cm3": smallest_lesion_cm3}
    members = tuple(_load_members(StrokeFormer, path, **asked))
    return members[0] if len(members) == 1 else StrokeFormerEnsemble(members)


def _load_members(kind: type[pl.LightningModule], path: Paths, **asked) -> list[pl.LightningModule]:
    """The models of one or more checkpoints; what is `asked` for, unless None, takes the place of hyperparameters."""
    paths = paths_of(path)
    require_once(paths)
    members = [load_model(kind, each) for each in paths]
    for member in members:
        member.hparams.update({name: value for name, value in asked.items() if value is not None})
    require_alike(members, paths)
    return members


def paths_of(path: Paths) -> list[Path | str]:
    """One checkpoint or several as a list."""
    return [path] if isinstance(path, Path | str) else list(path)


def require_once(paths: list[Path | str]) -> None:
    files = [Path(path).resolve() for path in paths]
    for i, path in enumerate(paths):
        if files[i] in files[:i]:
            raise UserError(f"{path} is given twice; an ensemble takes each checkpoint once")


def require_alike(members: list[pl.LightningModule], paths: list[Path | str]) -> None:
    """Refuse to take networks together that do not see the same, or do not say the same kind of thing.

    Args:
        paths: their checkpoints.

    Raises:
        UserError: other grids, voxel sizes, channels, classes or RoI sizes, or a stage 1 of the rule ``grouped``.
    """
    wanted = _traits(members[0])
    for member, path in zip(members[1:], paths[1:], strict=True):
        for what, held in _traits(member).items():
            if not _same(held, wanted[what]):
                raise UserError(
                    f"{path} was trained with {what} {held}, but {paths[0]} with {wanted[what]}; an ensemble takes "
                    "networks that agree in it"
                )
        if member.hparams.get("consistency") == "grouped":
            raise UserError(
                f"{path} was trained with --consistency grouped, which has no evidence to average; give one"
            )


def _traits(model: pl.LightningModule) -> dict[str, object]:
    """What the members of an ensemble must have in common."""
    held = {name: model.hparams[name] for name in (*SHARED, "consistency") if name in model.hparams}
    return {**asdict(model.grid or Grid(None)), **held}


def _same(one, other) -> bool:
    """Whether two networks were trained with the same; sizes in mm may differ as much as they are rounded in files."""
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        rounding = SAME_SIZE if isinstance(one[0], float) else 0
        return len(one) == len(other) and np.allclose(one, other, rtol=rounding, atol=0)
    return one == other


def store_hyperparameters(path: Path, **values) -> None:
    """Write what was chosen after training into a checkpoint, where every script finds it."""
    checkpoint = read_checkpoint(path)
    checkpoint["hyper_parameters"].update(values)
    content = io.BytesIO()  # where the disk is full, torch.save itself does not say so
    torch.save(checkpoint, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def run_name(checkpoint: Paths) -> str:
    """Name of the run that a checkpoint belongs to: ``RPN/<name>/checkpoints/best.ckpt``.

    Of several it is that of the first, with how many more there are.
    """
    first, *others = paths_of(checkpoint)
    path = Path(first).resolve()
    name = path.parent.parent.name if path.parent.name == "checkpoints" else path.stem
    return f"{name}_and_{len(others)}_more" if others else name


def grid_at_test(model: pl.LightningModule, scan_dim: list[int] | None, resize_to: list[int] | None, path: str) -> Grid:
    """The grid that a network asks for, in another shape where ``--scan_dim`` gives one.

    Raises:
        UserError: a ``--resize_to`` that the network was not trained with.
    """
    wanted = resize_to and tuple(resize_to)
    if model.grid is None:
        return Grid(tuple(scan_dim or SCAN_DIM), wanted)
    if wanted not in (None, model.grid.resize_to):
        raise UserError(f"--resize_to {resize_to}, but {path} was trained with {model.grid.resize_to}; leave it out")
    return replace(model.grid, scan_dim=tuple(scan_dim or model.grid.scan_dim))


def require_spacing(spacing_mm: tuple[float, ...] | None, model: pl.LightningModule, path: str, mend: str) -> None:
    """Refuse scans whose voxels (D, H, W, mm) are of another size than those that a network has learned from."""
    held = model.grid and model.grid.spacing_mm
    if spacing_mm and held and not np.allclose(spacing_mm, held, rtol=SAME_SIZE):
        raise UserError(f"{path} was trained on voxels of {size_text(held)} mm, not {size_text(spacing_mm)}; {mend}")


def require_channels(channels: int, model: pl.LightningModule, path: str) -> None:
    held = model.hparams.in_channels
    if channels != held:
        raise UserError(f"the scans have {channels} channels, but {path} was trained for {held}; take another one")


def require_classes(num_classes: int, held: int, path: str) -> None:
    if num_classes != held:
        raise UserError(f"--num_classes {num_classes}, but {path} was trained for {held}; leave the argument out")
