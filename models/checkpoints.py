"""Checkpoints: marked with the model they hold, loaded without running any code they might carry. A model folder of
``models.export`` is one of both stages."""

import io
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from data.files.nifti import SAME_SIZE
from data.scans.contrast import require_contrast
from data.scans.grid import ORIENTATION, Grid, size_text
from data.settings import SCAN_DIM
from models.device import device
from models.ensembles import SHARED, Member, RPNEnsemble, StrokeFormerEnsemble
from models.export.exported import NETWORKS, is_model
from models.rpn.module import RPN
from models.rpn.settings import RegionSettings
from models.segmentation.module import StrokeFormer
from models.segmentation.settings import DecisionSettings
from utils.errors import UserError
from utils.files import atomic_path, expanded
from utils.settings import checked

# Raised by hand when what a checkpoint holds gets another meaning.
CHECKPOINT_VERSION = 2
Paths = Path | str | Sequence[Path | str]
Network = RPN | RPNEnsemble | StrokeFormer | StrokeFormerEnsemble


class MarkCheckpoint(pl.Callback):
    """Writes the model's class name, and grid, orientation and contrast of its training scans, into each checkpoint."""

    def __init__(self, grid: Grid, contrast: str | None) -> None:
        self.grid, self.contrast = grid, contrast

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        checkpoint["model"], checkpoint["version"] = type(module).__name__, CHECKPOINT_VERSION
        checkpoint["grid"] = {**asdict(self.grid), "orientation": ORIENTATION}
        checkpoint["contrast"] = self.contrast


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints, written by `write_checkpoint`: its own way would need as much room in ``/tmp``."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        write_checkpoint(path, checkpoint)


def write_checkpoint(path: Path | str, checkpoint: dict) -> None:
    content = io.BytesIO()  # where the disk is full, torch.save itself does not say so
    torch.save(checkpoint, content)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def load_model(kind: type[Member], path: Path | str) -> Member:
    """The model of a checkpoint in evaluation mode, on `models.device.device`, with its ``grid`` and ``contrast``.

    A `UserError` says that there is no such file, no checkpoint, or the checkpoint of another model.
    """
    checkpoint = read_checkpoint(path, kind.__name__)
    held = checkpoint.get("model")
    if held != kind.__name__:
        raise UserError(f"{path} is a checkpoint of {held or 'another program'}, not of {kind.__name__}")
    try:
        model = kind(**checkpoint["hyper_parameters"])
        frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
        model.load_state_dict({**frozen, **checkpoint["state_dict"]})  # what is not used is not exported
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"checkpoint {path} does not fit this version of {held} ({reason}); train it anew") from None
    model.grid, model.contrast = grid_of(checkpoint, path), checkpoint.get("contrast")
    layout = torch.channels_last if kind is RPN else torch.contiguous_format  # 1.7 times as fast on a CPU
    return model.to(device(), memory_format=layout).eval()


def grid_of(checkpoint: dict, path: Path | str) -> Grid | None:
    """The grid that a network learned on; None for a checkpoint without one."""
    if (held := checkpoint.get("grid")) is None:
        return None
    if held["orientation"] != ORIENTATION:
        raise UserError(f"{path} was trained on scans in {held['orientation']}, not {ORIENTATION}; train it anew")
    return Grid(**{name: held[name] and tuple(held[name]) for name in Grid.__dataclass_fields__})


def read_checkpoint(path: Path | str, kind: str | None = None) -> dict:
    """What a checkpoint holds; of a model folder that of the class `kind`."""
    path = expanded(path)
    if kind and is_model(path):
        from models.export.weights import exported_checkpoint  # here: onnx is needed for nothing else

        return {**exported_checkpoint(path, kind), "version": CHECKPOINT_VERSION}
    try:
        if not path.is_file():
            raise UserError(f"checkpoint {path} does not exist; give the path of a .ckpt file or of an exported model")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}); allow it: chmod a+r {path}") from None
    except Exception as error:  # torch raises a dozen types for a broken or unsafe file
        raise UserError(f"checkpoint {path} cannot be read safely ({type(error).__name__}); train it anew") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of a StrokeFormer model")
    if "model" in checkpoint and checkpoint.get("version") != CHECKPOINT_VERSION:
        raise UserError(f"checkpoint {path} is of an earlier version of this program; train it anew")
    return checkpoint


def load_rpn(path: Paths, score_threshold: float | None = None) -> RPN | RPNEnsemble:
    """The RPN of a checkpoint, or the ensemble of several; a `score_threshold` replaces their own.

    A `UserError` says what is wrong with a checkpoint, or why several are no ensemble.
    """
    checked(RegionSettings(score_threshold=score_threshold))
    members = _load_members(RPN, path, score_threshold=score_threshold)
    return members[0] if len(members) == 1 else RPNEnsemble(tuple(members))


def load_strokeformer(
    path: Paths, lesion_threshold: float | None = None, smallest_lesion_cm3: float | None = None
) -> StrokeFormer | StrokeFormerEnsemble:
    """The StrokeFormer of a checkpoint, or the ensemble of several; what is given of `Decision` replaces their own.

    With a threshold of its own all components are lesions: what tells them apart was learned at another one.
    """
    decision = {"lesion_threshold": lesion_threshold, "smallest_lesion_cm3": smallest_lesion_cm3}
    checked(DecisionSettings(**decision))
    weights = None if lesion_threshold is None else ()
    members = _load_members(StrokeFormer, path, **decision, lesion_weights=weights)
    return members[0] if len(members) == 1 else StrokeFormerEnsemble(tuple(members))


def _load_members(kind: type[Member], path: Paths, **hyperparameters: float | tuple | None) -> list[Member]:
    """Models of checkpoints, with the `hyperparameters` that are not None; refuses several that cannot be averaged."""
    paths = paths_of(path or ())
    if not paths:
        raise UserError("path names no checkpoint; give that of a .ckpt file")
    files = [Path(path).resolve() for path in paths]
    if repeated := [path for i, path in enumerate(paths) if files[i] in files[:i]]:
        raise UserError(f"{repeated[0]} is given twice; an ensemble takes each checkpoint once")
    members = [load_model(kind, each) for each in paths]
    for member in members:
        member.hparams.update({name: value for name, value in hyperparameters.items() if value is not None})
    expected = {what: held for member in reversed(members) for what, held in _traits(member).items()}
    for member, path in zip(members[1:], paths[1:], strict=True):
        for what, held in _traits(member).items():
            if not _same(held, expected[what]):
                raise UserError(
                    f"{path} was trained with {what} {held}, but {paths[0]} with {expected[what]}; an ensemble takes "
                    "networks that agree in it"
                )
    return members


def _traits(model: RPN | StrokeFormer) -> dict[str, object]:
    """What the members of an ensemble must have in common."""
    held = {name: model.hparams[name] for name in SHARED if name in model.hparams}
    contrast = {"contrast": model.contrast} if model.contrast else {}  # one that is unknown may be any
    return {**{name: getattr(model.grid, name, None) for name in Grid.__dataclass_fields__}, **held, **contrast}


def _same(one: object, other: object) -> bool:
    """Whether traits are equal; sizes in mm up to their rounding in files."""
    if isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        rounding = SAME_SIZE if isinstance(one[0], float) else 0
        return len(one) == len(other) and np.allclose(one, other, rtol=rounding, atol=0)
    return one == other


def paths_of(path: Paths) -> list[Path | str]:
    """One checkpoint or several as a list."""
    return [path] if isinstance(path, Path | str) else list(path)


def files_of(path: Paths) -> list[Path]:
    """The files of checkpoints, in place of a model folder those of its networks."""
    paths = map(expanded, paths_of(path))
    return [file for each in paths for file in ([each / name for name in NETWORKS] if is_model(each) else [each])]


def store_hyperparameters(path: Path, **values) -> None:
    """Write what was chosen after training into a checkpoint, where every script finds it."""
    store_copy(path, path, None, **values)


def store_copy(source: Path | str, path: Path, kind: str | None, **values) -> None:
    """Write a checkpoint, or of a model folder that of the class `kind`, with other hyperparameters into a file."""
    checkpoint = read_checkpoint(source, kind)
    checkpoint["hyper_parameters"].update(values)
    write_checkpoint(path, checkpoint)


def joined_checkpoint(sources: Sequence[Path | str]) -> dict:
    """What one checkpoint of the StrokeFormers of several checkpoints or model folders holds, which `load_strokeformer`
    takes for an ensemble; of a single one what it holds itself.

    Raises:
        UserError: networks that differ in more than their weights, or a checkpoint of several members among others.
    """
    first, *others = checkpoints = [read_checkpoint(source, "StrokeFormer") for source in sources]
    if not others:
        return first
    hyperparameters, weights = first["hyper_parameters"], dict[str, torch.Tensor]()
    for i, (checkpoint, source) in enumerate(zip(checkpoints, sources, strict=True)):
        held = checkpoint["hyper_parameters"]
        if held.get("members", 1) > 1:
            raise UserError(f"{source} holds several networks already; give those that it was made of")
        for name in ("arch", "window_size"):
            if held[name] != hyperparameters[name]:
                raise UserError(f"{source} has {name} {held[name]}, {sources[0]} another; one file takes the same")
        networks = {name: weight for name, weight in checkpoint["state_dict"].items() if name.startswith("net.")}
        weights |= {f"net.networks.{i}.{name.removeprefix('net.')}": weight for name, weight in networks.items()}
    contrast = next(filter(None, (checkpoint.get("contrast") for checkpoint in checkpoints)), None)
    return {
        **{name: first[name] for name in ("model", "version", "grid")},
        "contrast": contrast,
        "hyper_parameters": {**hyperparameters, "cls_loss": None, "members": len(sources)},
        "state_dict": weights,
    }


def run_name(checkpoint: Paths) -> str:
    """Name of a checkpoint's run, ``RPN/<name>/checkpoints/best.ckpt``; of several with how many more there are."""
    first, *others = paths_of(checkpoint)
    path = Path(first).resolve()
    name = path.parent.parent.name if path.parent.name == "checkpoints" else path.stem
    return f"{name}_and_{len(others)}_more" if others else name


def grid_at_test(
    model: Network, scan_dim: Sequence[int] | None, resize_to: Sequence[int] | None, path: Path | str
) -> Grid:
    """The grid of a network, in another shape where ``--scan_dim`` gives one; refuses another ``--resize_to``."""
    size = (resize_to[0], resize_to[1]) if resize_to else None
    held = model.grid or Grid(SCAN_DIM, size)
    if size not in (None, held.resize_to):
        raise UserError(f"--resize_to {resize_to}, but {path} was trained with {held.resize_to}; leave it out")
    channels, depth, height, width = scan_dim or held.scan_dim
    return replace(held, scan_dim=(channels, depth, height, width))


def require_spacing(spacing_mm: Sequence[float] | None, model: Network, path: Path | str, fix: str) -> None:
    """Refuse scans whose voxels (D, H, W, mm) are of another size than those that a network has learned from."""
    held = model.grid and model.grid.spacing_mm
    if spacing_mm and held and not np.allclose(spacing_mm, held, rtol=SAME_SIZE):
        raise UserError(f"{path} was trained on voxels of {size_text(held)} mm, not {size_text(spacing_mm)}; {fix}")


def require_channels(channels: int, model: Network, path: Path | str) -> None:
    held = model.hparams["in_channels"]
    if channels != held:
        raise UserError(f"the scans have {channels} channels, but {path} was trained for {held}; take another one")


def require_fit(rpn: RPN, path: Path | str, grid: Grid, contrast: str | None) -> None:
    """Refuse a network of stage 1 of other channels, voxels or contrast than that of stage 2."""
    require_channels(grid.scan_dim[0], rpn, path)
    require_spacing(grid.spacing_mm, rpn, path, "take a network of stage 1 of that size")
    require_contrast((), rpn.contrast, path, contrast)


def require_classes(num_classes: int, held: int, path: Path | str) -> None:
    if num_classes != held:
        raise UserError(f"--num_classes {num_classes}, but {path} was trained for {held}; leave the argument out")
