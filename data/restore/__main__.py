"""Predictions back on the grid of the original NIfTI: ``python -m data.restore`` (`data.prepare.restore`)."""

from data.prepare.restore import main, parse_args
from utils import cli

if __name__ == "__main__":
    cli.run(main, parse_args)
