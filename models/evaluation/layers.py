"""Layers of a network that a class activation map can be drawn for, by name."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from utils.errors import UserError

Size = tuple[int, ...]


@dataclass(frozen=True)
class Layers:
    """Modules of a network, by name, and the sizes (K, *sides) of the maps of those that give one, outer ones first.

    image: (C, *sides) of the image that the sizes belong to.
    output: size of what the network returns, which explains nothing; None where that is no map.
    """

    modules: dict[str, nn.Module]
    sizes: dict[str, Size]
    image: Size
    output: Size | None

    def find(self, names: Sequence[str], argument: str) -> list[nn.Module]:
        """The modules that an argument names; a `UserError` for one that is unknown or gives no map."""
        for name in names:
            if name not in self.sizes:
                what = "gives no map" if name in self.modules else "is no layer of this network"
                raise UserError(f"{argument} {name} {what}; {argument} list shows those to choose from")
        return [self.modules[name] for name in names]

    def table(self, argument: str) -> str:
        """A line for each of the outermost layers, with channels x sides of its map; inner ones can be named too."""
        shown: dict[str, str] = {}
        for name, size in self.sizes.items():
            if size != self.output and not any(name.startswith(f"{outer}.") for outer in shown):
                shown[name] = _text(size)
        width = max(map(len, shown))
        lines = [f"  {name:{width}}  {size}" for name, size in shown.items()]
        return "\n".join([f"Layers for {argument}, and their maps of an image of {_text(self.image)}:", *lines])


def layers_of(
    network: nn.Module, image: torch.Tensor, prefix: str = "", as_map: Callable = lambda output: output
) -> Layers:
    """The layers that give maps for an image (1, C, *sides).

    Those count that are called once and give one tensor with the axes of the image, all sides shrunk alike; tokens with
    the channels behind, as transformers have them, are none.

    Args:
        prefix: in front of the names of the modules.
        as_map: from the output of a module to its map.
    """
    modules = {name: module for name, module in network.named_modules(prefix=prefix) if module is not network}
    outputs: dict[str, list[Size | None]] = defaultdict(list)

    def note(name: str) -> Callable:
        return lambda module, inputs, output: outputs[name].append(_size_of_map(as_map(output), image))

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            output = _size_of_map(network.eval()(image), image)
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: size for name in modules if len(outputs[name]) == 1 and (size := outputs[name][0])}
    return Layers(modules, sizes, tuple(image.shape[1:]), output)


def _size_of_map(output: object, image: torch.Tensor) -> Size | None:
    """(K, *sides) of a map of the image; None for what is none."""
    if not isinstance(output, torch.Tensor) or output.ndim != image.ndim:
        return None
    shrunk = {side / there for side, there in zip(image.shape[2:], output.shape[2:], strict=True)}
    return tuple(output.shape[1:]) if len(shrunk) == 1 else None


def _text(size: Size) -> str:
    return " x ".join(map(str, size))
