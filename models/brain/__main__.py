"""Train the network that finds the brain on synthetic heads alone: ``python -m models.brain``.

What it writes ships with the project (``pretrained/README.md``); no one who segments scans needs to train it.
"""

from dataclasses import dataclass
from pathlib import Path

from utils import cli
from utils.settings import option
from utils.validators import non_negative_int, pathname, positive_int


@dataclass(frozen=True)
class Settings:
    """Training on the CPU."""

    out: str = option(pathname, "file of the network", "pretrained/brain.onnx")
    n_heads: int = option(positive_int, "synthetic heads to learn from", 240)
    steps: int = option(positive_int, "steps of the optimiser", 5600)
    seed: int = option(non_negative_int, "seed of heads and training", 4000)
    num_workers: int = option(positive_int, "processes that draw heads", 1)


parse_args = cli.parser_of(Settings(), __doc__)


def main(settings: Settings) -> None:
    from models.brain.heads import draw_heads
    from models.brain.training import export, train

    heads = draw_heads(settings.n_heads, settings.seed, settings.num_workers)
    export(train(heads, settings.steps, settings.seed), Path(settings.out))
    print(f"The network is in {settings.out}")


if __name__ == "__main__":
    cli.run(main, parse_args)
