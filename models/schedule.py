"""The learning rate of both stages: a linear warm-up, then a polynomial decay."""

import torch

POLYNOMIAL_POWER = 0.9


def learning_rate(step: int, total: int, warmup_steps: int, warmup_lr: float, max_lr: float, opt_lr: float) -> float:
    """Learning rate at an optimiser step: linear warm-up, then polynomial decay to `opt_lr` at step `total`."""
    if step < warmup_steps:
        return warmup_lr + (max_lr - warmup_lr) * step / warmup_steps
    progress = min((step - warmup_steps) / max(total - warmup_steps, 1), 1.0)
    return opt_lr + (max_lr - opt_lr) * (1 - progress) ** POLYNOMIAL_POWER


def optimise(
    optimizer: torch.optim.Optimizer, total: int, warmup_steps: int, warmup_lr: float, max_lr: float, opt_lr: float
) -> dict:
    """What Lightning's ``configure_optimizers`` returns for an optimiser whose rate is `max_lr` and this schedule."""
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, total, warmup_steps, warmup_lr, max_lr, opt_lr) / max_lr
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
