"""The parser of every command, how it ends on a mistake, and recipes: files of arguments."""

import argparse
import atexit
import errno
import gc
import os
import shlex
import sys
from pathlib import Path

from utils.errors import UserError

# What the operating system says of a place that takes no files.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
RECIPE = "@"  # before the path of a file of arguments


def run(main, parse_args) -> None:
    """Run ``main(parse_args())``; a `UserError` ends with its one line on stderr and exit code 2."""
    atexit.register(gc.freeze)  # or Python would look for garbage among all that torch and MONAI hold: 1.5 s at exit
    args = parse_args()
    try:
        return main(args)
    except UserError as error:
        why = str(error)
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # from a library that writes files of its own, such as a checkpoint
        if error.errno not in UNWRITABLE:
            raise
        why = f"{error.filename or 'a result'} cannot be written ({error.strerror}); free or choose another place"
    # Said last: the progress bars of the frames that were left have ended their lines by now.
    print(f"{program()}: error: {why}", file=sys.stderr)
    sys.exit(2)


def program() -> str:
    """How the running command was called: ``test_rpn.py`` or ``python -m data.slices``."""
    spec = sys.modules["__main__"].__spec__
    return Path(sys.argv[0]).name if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


class Parser(argparse.ArgumentParser):
    """Refuses a mistake in one line, and reads recipes: ``@recipes/atlas.args``.

    A recipe holds an argument with its values in each line; what stands behind ``#`` says why. Arguments after it win.
    """

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        try:
            return shlex.split(arg_line, comments=True)
        except ValueError as error:
            self.error(f"a recipe holds the line {arg_line!r} ({error}); put one argument with its values in a line")

    def require_only(self, *names: str) -> None:
        """Let all other required arguments be left out."""
        for action in self._actions:
            action.required = action.required and action.dest in names

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}; --help tells more\n")


def make_parser(description: str) -> Parser:
    """A parser that shows every default and refuses abbreviated arguments."""
    return Parser(
        prog=program(),
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        fromfile_prefix_chars=RECIPE,
    )


def recipes(command: list[str]) -> list[str]:
    """The recipes among the words of a command line."""
    return [word.removeprefix(RECIPE) for word in command if word.startswith(RECIPE)]


def without_prefix(args: argparse.Namespace, prefix: str) -> argparse.Namespace:
    """The arguments as another script knows them: each ``prefix``-ed value takes the bare name's place."""
    values = dict(vars(args))
    values.update({name.removeprefix(prefix): v for name, v in vars(args).items() if name.startswith(prefix)})
    return argparse.Namespace(**values)
