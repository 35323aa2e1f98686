"""The start of a training from the weights of another one, or of a model folder."""

from collections.abc import Sequence

from data.scans.fingerprints import content_digest
from models.checkpoints import files_of, load_model, require_spacing
from models.ensembles import Member
from models.rpn.module import RPN
from models.segmentation.settings import NETWORKS
from utils.errors import UserError


def start_from(model: Member, path: str | None, spacing_mm: Sequence[float] | None) -> None:
    """Give an untrained network the weights of a checkpoint or model folder; without a `path` it stays as it is.

    What the other network has not, such as the classifier of ``--cls_loss``, stays untrained; of several members the
    first is taken. Its contrast and its anchors may be others. Its voxels (D, H, W) may not: it would have to learn
    again how large everything is, and ``--spacing`` is easily given.

    Raises:
        UserError: no checkpoint of this stage, another network, or voxels of another size than `spacing_mm`.
    """
    if path is None:
        return
    other = load_model(type(model), path)
    for (name, own), held in zip(_traits(model).items(), _traits(other).values(), strict=False):
        if own != held:
            raise UserError(f"{path} has {name} {held}, not {own}; a training that starts from it needs the same")
    if other.grid and other.grid.spacing_mm:
        wanted = " ".join(f"{side:.4g}" for side in other.grid.spacing_mm)
        require_spacing(spacing_mm, other, path, f"give --spacing {wanted}")
    names, first = model.state_dict().keys(), "net.networks.0."  # of several members
    held = {name.replace(first, "net."): weight.cpu() for name, weight in other.state_dict().items()}
    weights = {name: weight for name, weight in held.items() if name in names}
    model.load_state_dict({**model.state_dict(), **weights})


def start_inputs(path: str | None) -> dict[str, str]:
    """The digest of what a training starts from, for ``run.json``: a run that is resumed must have begun with it."""
    return {} if path is None else {"the network that it starts from": content_digest(files_of(path))}


def _traits(model: Member) -> dict[str, object]:
    """What decides on the shapes of a network's weights."""
    hp = model.hparams
    if isinstance(model, RPN):
        return {"channels": hp["in_channels"], "a number of anchor sizes of": len(hp["anchor_sizes"])}
    fixed = NETWORKS[hp["arch"]].of_one_window
    window = {"--window_size": " ".join(map(str, model.window))} if fixed else {}
    return {"--arch": hp["arch"], "--in_channels": hp["in_channels"], "--num_classes": hp["num_classes"], **window}
