"""Settings: dataclasses of options and further settings, that are arguments of the command line and of Python alike."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What becomes of a resumed run whose argument has another value; without a mark it is refused.
MAY_DIFFER = "may differ"  # it says where, how long or how fast a run goes
TESTS_ANEW = "tests anew"  # it says what an evaluation writes

RECIPE = "@"  # before the path of a file of arguments

Settings = TypeVar("Settings", bound="DataclassInstance")


@dataclass(frozen=True)
class Option:
    """How an argument is read."""

    type: Callable[[str], Any] | None  # reads a word of the command line; None for a switch
    help: str
    on_resume: str | None = None  # `MAY_DIFFER`, `TESTS_ANEW`, or None to refuse another value
    shared: bool = False  # whether both stages of a cross-validation take the same argument, without a prefix
    exclusive: str | None = None  # options of the same word exclude each other
    positional: bool = False  # given by its place, without a name
    more: Mapping[str, Any] = field(default_factory=dict)  # for `argparse.ArgumentParser.add_argument`


@dataclass(frozen=True)
class Argument:
    """An option at its place among settings."""

    name: str  # on the command line, without dashes
    option: Option
    value: Any  # of the settings; the default
    group: tuple[type, str]  # the settings class that it belongs to, and the prefix there


def option(type: Callable[[str], Any] | None, help: str, default: Any = None, **more: Any) -> Any:
    """A field that is an argument; `more` are fields of `Option` and keywords of `ArgumentParser.add_argument`."""
    own = {each.name: more.pop(each.name) for each in fields(Option) if each.name in more}
    value: Any = {"default_factory": default.copy} if isinstance(default, dict) else {"default": default}
    return field(**value, metadata={"option": Option(type, help, more=more, **own)}, kw_only=True)


def part(default: Any, prefix: str) -> Any:
    """A field that holds other settings, whose arguments have a prefix unless they are shared."""
    return field(default=default, metadata={"prefix": prefix}, kw_only=True)


def arguments(settings: Any, prefix: str = "") -> Iterator[Argument]:
    """All options of settings; those that several of their parts share come up several times."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(type(value)):
            yield from arguments(value, prefix + each.metadata.get("prefix", ""))
        elif declared := each.metadata.get("option"):
            yield Argument(_name(each.name, declared, prefix), declared, value, (type(settings), prefix))


def filled(settings: Settings, values: Mapping[str, Any], prefix: str = "") -> Settings:
    """The settings with values by the names of their arguments; what is not among them stays."""
    changed = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(type(value)):
            changed[each.name] = filled(value, values, prefix + each.metadata.get("prefix", ""))
        elif declared := each.metadata.get("option"):
            changed[each.name] = values.get(_name(each.name, declared, prefix), value)
    return replace(settings, **changed)


def checked(settings: Settings) -> Settings:
    """Settings made in Python; a `UserError` names an argument with a value that the command line would refuse."""
    for argument in arguments(settings):
        read, value, count = argument.option.type, argument.value, argument.option.more.get("nargs", 1)
        values = value if isinstance(value, list | tuple) else (value,)
        if value is None or read is None:
            continue
        if isinstance(count, int) and len(values) != count:
            raise UserError(f"{argument.name} is {value}; give {count} values")
        try:
            for each in values:
                read(str(each))
        except (ArgumentTypeError, ValueError) as error:
            raise UserError(f"{argument.name}: {error}; give another value") from None
    return settings


def flat(settings: Any) -> dict[str, Any]:
    """The values of settings by the names of their arguments, as JSON gives them back: tuples as lists."""
    values = {argument.name: argument.value for argument in arguments(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def named(settings: Any, *on_resume: str | None) -> set[str]:
    """The names of the arguments with one of these marks."""
    return {argument.name for argument in arguments(settings) if argument.option.on_resume in on_resume}


def _name(name: str, declared: Option, prefix: str) -> str:
    return name if declared.shared else prefix + name
