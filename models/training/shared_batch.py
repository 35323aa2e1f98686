"""A step of several processes that learns what one process would learn from the whole batch.

Each process runs the network on its share of a batch (`SharedBatches`). What a share cannot tell alone is
asked of the others here: the statistics of batch norms, and what a loss sums over the batch.
"""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.batches.sampling import Share


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def take_share(module: pl.LightningModule, batch_index: int, size: int) -> Share:
    """What this process has of the batch of a step; with nothing of it, its batch norms do not count either.

    Args:
        size: items of the batch that this process was handed.
    """
    if processes() == 1:
        return Share(size, size, 0)
    trainer = module.trainer
    loader = trainer.train_dataloader if trainer.training else trainer.val_dataloaders
    share = loader.batch_sampler.share(batch_index)
    for layer in module.modules():
        if isinstance(layer, SharedBatchNorm):
            layer.counts = share.own > 0
    return share


def whole_batch(share: Share, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors (own, ...) of the items of this process as tensors (whole, ...) of all items of the batch.

    Gradients flow to this process's own items alone. Those of the others are found where their items are, and DDP takes
    the mean over processes, so a loss is to be multiplied by `processes`.
    """
    if processes() == 1:
        return parts
    return {name: _gather(part, share) for name, part in parts.items()}


def _gather(part: torch.Tensor, share: Share) -> torch.Tensor:
    each = -(-share.whole // processes())  # the last processes may have fewer
    own = part[: share.own]
    padded = part.new_zeros(each, *part.shape[1:])
    padded[: share.own] = own.detach()
    parts = [torch.empty_like(padded) for _ in range(processes())]
    distributed.all_gather(parts, padded)
    whole = torch.cat(parts)[: share.whole]
    return torch.cat([whole[: share.place], own, whole[share.place + share.own :]])


def largest(values: torch.Tensor) -> torch.Tensor:
    """The largest of each value over all processes."""
    if processes() > 1:
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return values


def from_all(item) -> list:
    """What each process has of something that can be pickled."""
    if processes() == 1:
        return [item]
    found = [None] * processes()
    distributed.all_gather_object(found, item)
    return found


def from_first(find: Callable[[], Any]) -> Any:
    """What the first process finds, the same object of one process and a copy in the others."""
    return from_all(find() if processes() == 1 or distributed.get_rank() == 0 else None)[0]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes. torch names its own function of this kind differently by version."""

    @staticmethod
    def forward(ctx, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()  # each process's loss depends on the sum
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(_BatchNorm):
    """A batch norm over the batch of all processes. torch's own (``SyncBatchNorm``) does not run on a CPU.

    Attributes:
        counts: whether the images of this process belong to the batch.
    """

    counts = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(images)
        values, axes = images.to(self.weight.dtype), [0, *range(2, images.ndim)]
        weight, shape = float(self.counts), (1, -1, *[1] * (images.ndim - 2))
        n = _Sum.apply(values.new_tensor(weight * values.numel() / values.shape[1]))
        mean = _Sum.apply(weight * values.sum(axes)) / n
        centred = values - mean.view(shape)
        variance = _Sum.apply(weight * centred.square().sum(axes)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(images.dtype)

    def _check_input_dim(self, images: torch.Tensor) -> None:
        """Any number of dimensions will do."""


def share_batch_norms(module: nn.Module) -> None:
    """Let the batch norms of a network see the batch of all processes; its parameters stay what and where they are."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = SharedBatchNorm
