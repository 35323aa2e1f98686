"""Train the network that finds the brain on synthetic heads alone: ``python -m models.brain``.

What it writes ships with the project (``pretrained/README.md``); no one who segments scans needs to train it.
"""

from argparse import ArgumentParser

from data.scans.extraction import NETWORK
from models.brain.heads import draw_heads
from models.brain.training import export, train

HEADS, STEPS = 240, 5600  # synthetic heads to learn from; steps of the optimiser
SEED = 4000  # of heads and training


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()  # there are no options: each word is refused
    export(train(draw_heads(HEADS, SEED), STEPS, SEED), NETWORK)
    print(f"The network is in {NETWORK}")


if __name__ == "__main__":
    main()
