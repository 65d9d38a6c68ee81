"""Flags from config models: one for every field, with the field's description, default and checks.

A field of a nested model is ``--net.widths``, or ``--widths`` where no other field of that name is as near the top.
Where a field may be one of several kinds, ``--schedule.kind karras`` chooses, and the flags of every kind are there.
"""

import argparse
import difflib
import types
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pocketdiff.errors import PocketdiffError

Config = TypeVar("Config", bound=BaseModel)


class UsageError(PocketdiffError):
    """Flags that make no sense."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are exceptions of one sentence."""

    def __init__(self, prog: str, usage: str, description: str, examples: str) -> None:
        super().__init__(
            prog, usage=f"{prog} {usage}", description=description, epilog=examples, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing."""
        raise UsageError(f"{message}; {self.prog} --help lists the flags")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses all arguments; an unknown flag is answered with the nearest known one."""
        namespace, unknown = self.parse_known_args(list(arguments))
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            self.error(f"there is no {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return namespace


class _Leaf(NamedTuple):
    """A field that holds a plain value, perhaps one that only some kinds of its parent have."""

    path: str
    annotation: Any
    help: str
    kinds: tuple[str, ...] = ()


def add_config(
    parser: Parser, config: BaseModel, defaults: str = "the preset's", without: tuple[str, ...] = ()
) -> None:
    """Adds a flag for every field of a config, nested ones included.

    Args:
        parser: Gets the flags.
        config: Has the defaults.
        defaults: Says whose they are.
        without: Fields that the verb asks for in its own way.
    """
    leaves = [leaf for leaf in _merged(type(config)) if leaf.path not in without]
    names = [leaf.path.rpartition(".")[2] for leaf in leaves]
    depths = [leaf.path.count(".") for leaf in leaves]
    group = parser.add_argument_group("config", f"the defaults are {defaults}")
    for leaf, name, depth in zip(leaves, names, depths, strict=True):
        nearest = [other for other, named in zip(depths, names, strict=True) if named == name and other <= depth]
        short = [name] if len(nearest) == 1 and name != leaf.path else []
        flags = [f"--{part.replace('_', '-')}" for part in (leaf.path, *short)]
        only = f"[{', '.join(leaf.kinds)}] " if leaf.kinds and name != "kind" else ""
        present = _get(config, leaf.path)
        if present is _ABSENT and name == "kind":
            present = None
        default = "" if present is _ABSENT else f" (default: {_show(present)})"
        text = f"{only}{leaf.help}{default}".replace("%", "%%")
        if leaf.annotation is bool:
            group.add_argument(
                *flags, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, dest=leaf.path, help=text
            )
        else:
            many = "+" if _holds_tuple(leaf.annotation) else None
            metavar = f"{{{','.join(leaf.kinds)}}}" if name == "kind" else _metavar(leaf.annotation)
            group.add_argument(
                *flags, nargs=many, metavar=metavar, default=argparse.SUPPRESS, dest=leaf.path, help=text
            )


def given(namespace: argparse.Namespace, config: type[BaseModel]) -> dict[str, Any]:
    """The flags of a config that were given, by their fields' paths."""
    return {path: value for path, value in vars(namespace).items() if path.partition(".")[0] in config.model_fields}


def apply(config: Config, namespace: argparse.Namespace) -> Config:
    """The config with the flags that were given.

    A config's ``either`` names fields of which one holds: the one that is given takes the others' place.

    Raises:
        UsageError: If a value does not fit, naming its flag.
    """
    leaves = {leaf.path: leaf for leaf in _merged(type(config))}
    given = {path: value for path, value in vars(namespace).items() if path in leaves}
    tree = config.model_dump()
    # A new kind comes first, with its own defaults: the old kind's fields mean nothing to it.
    for path, value in sorted(given.items(), key=lambda item: not item[0].endswith(".kind")):
        *parents, name = path.split(".")
        holder, branch = {}, tree
        for parent in parents:
            holder, branch = branch, branch[parent]
        if name == "kind":
            if value not in leaves[path].kinds:
                raise UsageError(f"{_flag(path, value)}: there is no such kind; use {', '.join(leaves[path].kinds)}")
            if value == "none":
                holder[parents[-1]] = None
            elif branch is None or branch["kind"] != value:
                holder[parents[-1]] = {"kind": value}
        elif branch is None:
            kind = ".".join([*parents, "kind"])
            raise UsageError(f"{_flag(path, value)}: goes with a {_flag(kind)} that has it, and here that is none")
        else:
            branch[name] = None if value in ("none", ["none"]) else value
    for field, other in permutations(getattr(config, "either", ()), 2):
        if given.get(field, "none") != "none" and other not in given:
            tree[other] = None
    try:
        return type(config).model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
        if path := _nearest([str(part) for part in fault["loc"]], given):
            message = f"{_flag(path, given.get(path))}: {message}"
        raise UsageError(message) from error


def _flag(path: str, value: Any = None) -> str:
    """A flag as it is typed, with its value."""
    return f"--{path.replace('_', '-')} {'' if value is None else _show(value)}".rstrip()


def _nearest(location: list[str], given: dict[str, Any]) -> str:
    """The flag behind a pydantic location, which also holds a kind's name, or a tuple's index, or ends too early.

    A fault of the whole config, which has no location, is the flag's if only one was given.
    """
    if not location:
        return next(iter(given)) if len(given) == 1 else ""
    exact = [path for path in given if all(part in location for part in path.split("."))]
    within = [path for path in given if path.startswith(f"{location[0]}.")]
    return max(exact or within, key=len, default=".".join(location))


def _merged(model: type[BaseModel]) -> list[_Leaf]:
    """All leaves, those of several kinds made one."""
    merged: dict[str, _Leaf] = {}
    for leaf in _leaves(model):
        known = merged.get(leaf.path)
        merged[leaf.path] = known._replace(kinds=known.kinds + leaf.kinds) if known else leaf
    return list(merged.values())


def _leaves(model: type[BaseModel], prefix: str = "", kinds: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    for name, field in model.model_fields.items():
        if nested := _models(field.annotation):
            for kind in nested:
                own = (str(kind.model_fields["kind"].default),) if len(nested) > 1 else ()
                yield from _leaves(kind, f"{prefix}{name}.", own)
            if type(None) in get_args(field.annotation):
                yield _Leaf(f"{prefix}{name}.kind", field.annotation, "", ("none",))
        elif name != "kind" or kinds:
            text = "which kind it is" if name == "kind" else (field.description or "").removesuffix(".")
            yield _Leaf(f"{prefix}{name}", field.annotation, text, kinds)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The config models that a field may hold."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [model for part in get_args(annotation) for model in _models(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


_ABSENT = object()


def _get(config: Any, path: str) -> Any:
    """A config's value; _ABSENT where its kind has no such field."""
    for name in path.split("."):
        config = getattr(config, name, _ABSENT)
    return config


def _show(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(_show(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _holds_tuple(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(_holds_tuple(part) for part in get_args(annotation))


def _metavar(annotation: Any) -> str:
    arguments = [part for part in get_args(annotation) if part is not type(None) and part is not Ellipsis]
    if arguments and all(isinstance(part, str) for part in arguments):
        return "{" + ",".join(arguments) + "}"
    return _metavar(arguments[0]) if arguments else str(getattr(annotation, "__name__", "value")).upper()
