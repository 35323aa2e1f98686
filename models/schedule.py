"""The optimiser of both stages, whose rate warms up linearly and then decays polynomially."""

import pytorch_lightning as pl
import torch

POLYNOMIAL_POWER = 0.9


def learning_rate(step: int, total: int, warmup_steps: int, warmup_lr: float, max_lr: float, opt_lr: float) -> float:
    """Learning rate at an optimiser step: linear warm-up, then polynomial decay to `opt_lr` at step `total`."""
    if step < warmup_steps:
        return warmup_lr + (max_lr - warmup_lr) * step / warmup_steps
    progress = min((step - warmup_steps) / max(total - warmup_steps, 1), 1.0)
    return opt_lr + (max_lr - opt_lr) * (1 - progress) ** POLYNOMIAL_POWER


def optimise(module: pl.LightningModule, warmup_steps: int, warmup_lr: float, max_lr: float, opt_lr: float) -> dict:
    """What ``configure_optimizers`` returns: AdamW with the module's hyperparameters and `learning_rate`."""
    hp, total = module.hparams, int(module.trainer.estimated_stepping_batches)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=max_lr, eps=hp["eps"], betas=tuple(hp["betas"]), weight_decay=hp["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, total, warmup_steps, warmup_lr, max_lr, opt_lr) / max_lr
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
