"""Readers of argument values, which refuse a wrong one before any work."""

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, TypeVar

from utils.errors import UserError
from utils.files import UNDECODABLE, expanded

Number = TypeVar("Number", int, float)


def _number(kind: type[Number], accept: Callable[[Number], bool], what: str) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        with suppress(ValueError):
            if accept(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return read


positive_int = _number(int, lambda v: v > 0, "a whole number above 0")
non_negative_int = _number(int, lambda v: v >= 0, "a whole number of at least 0")
positive_float = _number(float, lambda v: 0 < v < float("inf"), "a finite number above 0")
non_negative_float = _number(float, lambda v: 0 <= v < float("inf"), "a finite number of at least 0")
fraction = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
positive_fraction = _number(float, lambda v: 0 < v <= 1, "a number above 0, up to 1")
ratio_below_one = _number(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")


def pathname(text: str) -> str:
    """A file or folder, with the home folder in the place of ``~``."""
    if UNDECODABLE.search(text):
        raise argparse.ArgumentTypeError(f"{text!a} is a name that is not UTF-8; rename it")
    try:
        return str(expanded(text)) if text.startswith("~") else text
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"softmax": true}}')
    return value


def extension(text: str) -> str:
    if text not in (".npy", ".nii", ".nii.gz"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of .npy, .nii, .nii.gz")
    return text


def logger(text: str) -> str:
    if text == "tensorboard" and not (find_spec("tensorboard") or find_spec("tensorboardX")):
        raise argparse.ArgumentTypeError("tensorboard is not installed; pip install tensorboard")
    return text


class DistinctAction(argparse.Action):
    """``--devices 0 1``: each once."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(set(values)) < len(values):
            parser.error(f"argument {option_string}: {values} names a device twice")
        setattr(namespace, self.dest, values)


class SplitsAction(argparse.Action):
    """``--splits TRAIN VAL TEST``: whole percentages that sum to 100, with something to train and test on."""

    def __call__(self, parser, namespace, values, option_string=None):
        if sum(values) != 100:
            parser.error(f"argument {option_string}: {values} sum to {sum(values)}; they must sum to 100")
        if min(values) < 1:
            parser.error(f"argument {option_string}: each of {values} must be at least 1")
        setattr(namespace, self.dest, values)


LIST = ("list",)  # in place of names of layers: print the names there are


class LayersAction(argparse.Action):
    """Names of layers; ``list`` asks which there are, and then only a checkpoint has to be given."""

    def __call__(self, parser, namespace, values, option_string=None):
        if tuple(values) == LIST:
            for action in parser._actions:
                action.required = action.required and action.dest == "ckpt_path"
        setattr(namespace, self.dest, values)
