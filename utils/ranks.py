"""The variables by which a launcher of several processes (torchrun, srun, jsrun) tells each its number."""

import os

# Those that Lightning and torch read. LOCAL_RANK and others they set themselves for the processes of a training.
VARIABLES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK", "TORCHELASTIC_USE_AGENT_STORE"),
)


def forget_launcher() -> None:
    """Be the first process of a training of its own; before Lightning is imported, which reads its number then."""
    for name in VARIABLES:
        os.environ.pop(name, None)
