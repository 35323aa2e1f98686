"""The command line, without heavy imports so that ``--help`` answers at once: parsers, recipes, how mistakes end."""

import argparse
import atexit
import errno
import gc
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError
from utils.files import expanded
from utils.progress import forget_launcher
from utils.settings import RECIPE, Settings, arguments, filled

# What the operating system says of a place that takes no files.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
KILLED_WORKER = r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly\s*$)"  # torch's words


def run(main: Callable[[Any], None], parse_args: Callable[[], Any]) -> None:
    """Run ``main(parse_args())``; a `UserError` ends with its one line on stderr and exit code 2, Ctrl-C with 130."""
    atexit.register(gc.freeze)  # or Python would look for garbage among all that torch and MONAI hold: 1.5 s at exit
    _open_streams()
    os.environ["MPLBACKEND"] = "agg"  # all pictures are files, whatever this machine could show
    forget_launcher()
    try:
        return main(parse_args())
    except UserError as error:
        why = str(error)
    except KeyboardInterrupt:
        print(f"{program()}: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone; nobody is left to read
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # from a library that writes files of its own, such as a checkpoint
        if error.errno not in UNWRITABLE:
            raise
        why = f"{error.filename or 'a result'} cannot be written ({error.strerror}); free or choose another place"
    except Exception as error:  # of torch, in this process or handed over by another
        if not re.search(KILLED_WORKER, str(error)):
            raise
        why = "a worker process of a loader was killed, most likely for memory; lower --num_workers"
    # Printed last: the progress bars of the frames that were left have ended their lines by now.
    print(f"{program()}: error: {why}", file=sys.stderr)
    sys.exit(2)


def _open_streams() -> None:
    """Open streams that the caller has closed (``2>&-``) onto nothing; files would get their numbers otherwise."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", errors="replace"))


def program() -> str:
    """How the running command was called: ``test_rpn.py`` or ``python -m data.slices``."""
    spec = sys.modules["__main__"].__spec__
    return Path(sys.argv[0]).name if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


def parser_of(defaults: Settings, description: str) -> Callable[..., Settings]:
    """A program's `parse_args`: reads words (by default those it was started with) into its settings."""
    return partial(parse, defaults, description)


def parse(defaults: Settings, description: str, argv: Sequence[str] | None = None) -> Settings:
    """The settings that a command line asks for; `argv` of None are the words that the program was started with."""
    parser = Parser(
        prog=program(),
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    _add_arguments(parser, defaults)
    try:
        words = list(_with_recipes(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        parser.error(str(error))
    values = vars(parser.parse_args(words))
    return filled(defaults, {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


class Parser(argparse.ArgumentParser):
    """Refuses a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help tells more\n")


def _with_recipes(words: Iterable[str]) -> Iterator[str]:
    """Words of a command line, those of recipes (``@recipes/atlas.args``) in their places.

    A recipe holds an argument with its values in each line; what stands behind ``#`` says why. Arguments after it win.
    """
    for word in words:
        if word.startswith(RECIPE):
            yield from _with_recipes(_read_recipe(word.removeprefix(RECIPE)))
        else:
            yield word


def _read_recipe(path: str) -> Iterator[str]:
    try:
        text = expanded(path).read_text("utf-8-sig")  # editors of Windows put a byte-order mark first
    except UnicodeDecodeError:
        text = "\0"  # as UTF-16 without a mark has it
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read ({error.strerror}); check the path") from None
    if "\0" in text:
        raise UserError(f"recipe {path} is not UTF-8; save it in this encoding")
    for line in text.splitlines():
        try:
            yield from shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(
                f"recipe {path} holds the line {line!r} ({error}); put one argument with its values in a line"
            ) from None


def _add_arguments(parser: Parser, settings: Any) -> None:
    """Give a parser all options of settings, once each, those of one class in a group."""
    groups: dict[Any, Any] = {(type(settings), ""): parser}
    added = set()
    for argument in arguments(settings):
        if argument.name in added:
            continue
        added.add(argument.name)
        declared, place = argument.option, argument.group
        if place not in groups:
            owner, prefix = place
            title = (owner.__doc__ or "").splitlines()[0].removesuffix(".")
            title = title[0].lower() + title[1:] + (" of stage 1" if prefix else "")
            groups[place] = parser.add_argument_group(title)
        group = groups[place]
        if word := declared.exclusive:
            if (place, word) not in groups:
                groups[place, word] = group.add_mutually_exclusive_group()
            group = groups[place, word]
        more = {"help": declared.help, **declared.more}
        if declared.positional:
            group.add_argument(argument.name, type=declared.type, **more)
        elif declared.type is None:
            group.add_argument(f"--{argument.name}", action="store_true", **more)
        else:
            more["default"] = list(argument.value) if isinstance(argument.value, tuple) else argument.value
            group.add_argument(f"--{argument.name}", type=declared.type, **more)
