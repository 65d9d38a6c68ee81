"""Flags from models: one for each field of a config and of a verb's options, with its description, default and checks.

``--help`` shows the options and the flags of the configs' common fields; ``--help-all`` shows all flags.
A field of a nested config is ``--net.widths``, or ``--widths`` if no other field of that name is at its depth or above.
If a field can hold several kinds of config, ``--schedule.kind karras`` chooses one. Each registered kind has flags.
argparse is used only here: `parse` returns the options as a model, and the config's flags as a dictionary.
"""

import argparse
import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from types import NoneType
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pocketdiff import frozen
from pocketdiff.errors import PocketdiffError
from pocketdiff.frozen import Alias, Filled
from pocketdiff.registry import Named, OneOf, marks

Model = TypeVar("Model", bound=BaseModel)
_ABSENT = object()
"""A default that does not exist, or is not shown."""
SYNONYMS = {
    "adam-lr muon-lr generator-lr discriminator-lr": "lr learning-rate",
    "augment": "augmentation hflip flip",
    "batch": "bs batch-size",
    "data": "dataset data-dir data-path",
    "device": "gpu cuda cpu mps",
    "ema": "ema-decay ema-rate",
    "epochs": "num-epochs n-epochs max-epochs",
    "images": "iterations iters max-steps train-steps num-images n num",
    "label-dropout": "drop-prob uncond-prob",
    "labels": "classes class label digits",
    "out": "o output output-dir outdir save",
    "overwrite": "f force",
    "per-label n": "n num count number samples num-samples num-images",
    "precision": "fp16 bf16 amp dtype",
    "sampler": "scheduler solver",
    "scale": "cfg cfg-scale guidance guidance-scale",
    "size": "image-size img-size resolution",
    "steps": "num-steps ddim-steps num-inference-steps",
    "warmup": "lr-warmup warmup-steps",
    "widths n-feat": "width channels base-channels dim",
}
"""Flags by the names that other programs give them."""
Given = dict[str, Any]
"""The flags of a config that were given: their values as typed, by the field's path ("net.widths")."""


class UsageError(PocketdiffError):
    """Flags that make no sense.

    Args:
        reason: What is wrong.
        flag: The flag with its value, as typed.
    """

    def __init__(self, reason: str, flag: str = "") -> None:
        super().__init__(f"{flag}: {reason}" if flag else reason)
        self.reason = reason


Metavar = frozen.Metavar


class Positional(Metavar):
    """Marks an option that is given without a flag."""


class _Converted(NamedTuple):
    """The value of a field that was given by its second flag, and that flag as typed."""

    value: float | str
    typed: str


class _Leaf(NamedTuple):
    """A flag of a field that holds a plain value."""

    path: str
    """That of the field, except in a second flag."""
    annotation: Any
    help: str
    metavar: str
    kinds: tuple[str, ...] = ()
    """The kinds of its parent that have it; empty if the parent has only one kind."""
    common: bool = False
    alias: Alias | None = None
    """Makes it a second flag."""
    field: str = ""
    """The field's path, for a second flag."""

    @property
    def flag(self) -> str:
        return f"--{self.path.rstrip('_').replace('_', '-')}"

    @property
    def dest(self) -> str:
        """The path of the field."""
        return self.field or self.path

    @property
    def is_kind(self) -> bool:
        return self.path.endswith(".kind")

    @property
    def nargs(self) -> str | None:
        return "+" if _holds_many(self.annotation) else None

    def value(self, typed: Any) -> Any:
        """A typed value, for validation: ``none``, LOW:HIGH and KEY=VALUE resolved."""
        if isinstance(typed, _Converted):
            return typed.value
        if get_origin(self.annotation) is dict:
            pairs = [] if typed == ["none"] else [text.partition("=") for text in typed]
            if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
                raise UsageError(f"{wrong[0]!r} must be KEY=VALUE", self.typed(typed))
            return {key: value for key, _, value in pairs}
        if isinstance(typed, list) and len(typed) == 1 and ":" in typed[0]:
            return typed[0].split(":")
        return None if typed in ("none", ["none"]) and NoneType in get_args(self.annotation) else typed

    def typed(self, value: Any) -> str:
        """The flag with a value, as typed."""
        if isinstance(value, _Converted):
            return value.typed
        return f"{self.flag} {'' if value is None else _show(value)}".rstrip()

    def converted(self, alias: Alias, text: str) -> _Converted:
        """The value of a second flag; text that is no number is refused later."""
        flag = f"--{alias.name} {text}"
        try:
            value = float(text) + alias.offset
        except ValueError:
            return _Converted(text, flag)
        return _Converted(value, f"{flag} ({self.field.rpartition('.')[2]} {value:g})")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``-a, --all X`` and not ``-a X, --all X``, as Python 3.13 does."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        metavar = str(action.metavar)
        values = metavar if ":" in metavar else self._format_args(action, metavar)  # LOW:HIGH is one word.
        return f"{', '.join(self.names(action))} {values}"

    def names(self, action: argparse.Action) -> Sequence[str]:
        """The names of a flag to show."""
        return action.option_strings


class _Brief(_Formatter):
    def names(self, action: argparse.Action) -> Sequence[str]:
        return action.option_strings[:1]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help-all lists the flags")


def parse(
    verb: str, arguments: Sequence[str], options: type[Model], config: BaseModel | None = None, heading: str = ""
) -> tuple[Model, Given]:
    """Parses a verb's arguments.

    Args:
        verb: Its name.
        arguments: The words after it.
        options: The verb's own options. The docstring is the description and the examples of the help. The options of
            a base class form a group, with its docstring as the heading.
        config: Gets a flag for every field, except those with the name of an option.
        heading: Of the config's flags: "title: description".

    Raises:
        UsageError: If a flag does not exist, or an option's value does not fit.
    """
    description, _, examples = inspect.cleandoc(options.__doc__ or "").partition("\n\nExamples:\n")
    whole = config is None or "--help-all" in arguments
    parser = _Parser(
        f"pocketdiff {verb}", description=description, epilog=f"examples:\n{examples}\n", allow_abbrev=False,
        formatter_class=_Formatter if whole else _Brief, add_help=False,
    )  # fmt: skip
    parser.add_argument("-h", "--help", "--help-all", action="help", help=argparse.SUPPRESS)
    leaves, named = {leaf.path: leaf for leaf in _leaves(options)}, ""
    for cls in options.__mro__:
        here = [leaves[name] for name in inspect.get_annotations(cls) if name in leaves]
        title, _, text = (cls.__doc__ or "").removesuffix(".").partition(": ")
        group = parser if cls is options or not here else parser.add_argument_group(title.lower(), text)
        for leaf in here:
            field = options.model_fields[leaf.path]
            if any(isinstance(mark, Positional) for mark in field.metadata):
                optional = not field.is_required()
                nargs, text = ("?", f"{leaf.help} (default: {field.default})") if optional else (leaf.nargs, leaf.help)
                parser.add_argument(leaf.path, metavar=leaf.metavar, nargs=nargs, help=text, default=argparse.SUPPRESS)
                shown = f"{leaf.metavar}{f' [{leaf.metavar} ...]' if leaf.nargs else ''}"
                named += f" [{shown}]" if optional else f" {shown}"
            else:
                default = _ABSENT if field.default is None or leaf.annotation is bool else field.default
                _add(group, leaf, [leaf.flag], leaf.path, default, "store_true")
    if config is not None:
        _add_config(parser, config, heading, set(leaves), whole)
    if not whole:
        count = sum(bool(action.option_strings) for action in parser._actions) - 1
        parser.epilog = f"{parser.epilog}\n{parser.prog} --help-all lists all {count} flags\n"
    parser.usage = f"{parser.prog}{named} [flags]"
    # Flags first: otherwise argparse takes an optional word to be left out when a flag comes before it.
    namespace, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        names = [flag.removeprefix("--") for flag in parser._option_string_actions]
        near = [f"--{name}" for name in similar(unknown[0].partition("=")[0], names, SYNONYMS)]
        parser.error(f"there is no {unknown[0]!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    own = {path: value for path, value in vars(namespace).items() if path in leaves}
    given = {path.removeprefix("."): value for path, value in vars(namespace).items() if path not in leaves}
    return _validate(options, own, own, leaves), given


def similar(word: str, names: Sequence[str], synonyms: Mapping[str, str]) -> list[str]:
    """The names that an unknown word may mean: those whose synonym it is, or else the one with the closest spelling.

    ``synonyms`` maps names to words; several of either have spaces between them.
    """
    word = word.lower().lstrip("-").replace("_", "-")
    meant = [name for known, words in synonyms.items() if word in words.split() for name in known.split()]
    return [name for name in meant if name in names] or difflib.get_close_matches(word, names, 1)


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag that decides which other flags exist."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(flag, nargs="?", dest="value")
    found: str | None = parser.parse_known_args(list(arguments))[0].value
    return found


def apply(config: Model, given: Given) -> Model:
    """The config with the flags that were given.

    A config's ``either`` names fields of which only one may be set: the given one clears the others.

    Raises:
        UsageError: If a value does not fit, naming its flag.
    """
    leaves = {leaf.path: leaf for leaf in _merged(type(config))}
    tree = config.model_dump()
    # A new kind comes first and has its own defaults: it does not have the old kind's fields.
    for path in sorted(given, key=lambda path: not leaves[path].is_kind):
        leaf, typed = leaves[path], given[path]
        *parents, name = path.split(".")
        holder, branch = {}, tree
        for parent in parents:
            holder, branch = branch, branch[parent]
        kind = "none" if branch is None else branch.get("kind", "none")
        if leaf.is_kind:
            if typed not in leaf.kinds:
                raise UsageError(f"there is no such kind; use {', '.join(leaf.kinds)}", leaf.typed(typed))
            if typed != kind:
                holder[parents[-1]] = None if typed == "none" else {"kind": typed}
        elif leaf.kinds and kind not in leaf.kinds:
            chooser = leaves[".".join([*parents, "kind"])]
            raise UsageError(f"needs {chooser.typed(' or '.join(leaf.kinds))}; here it is {kind}", leaf.typed(typed))
        else:
            branch[name] = leaf.value(typed)
    for field, other in permutations(getattr(config, "either", ()), 2):
        if given.get(field, "none") != "none" and other not in given:
            tree[other] = None
    return _validate(type(config), tree, given, leaves)


def _validate(model: type[Model], tree: dict[str, Any], given: Given, leaves: dict[str, _Leaf]) -> Model:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        message = f"{message[0].lower()}{message[1:]}"
        path = _nearest([str(part) for part in fault["loc"]], given)
        flag = leaves[path].typed(given.get(path)) if path in leaves else path and f"--{path.replace('_', '-')}"
        raise UsageError(message, flag) from error


def _nearest(location: list[str], given: Given) -> str:
    """The field behind a pydantic location, which may also hold an index, or end too early.

    A fault of the whole config has no location; it belongs to the flag if only one was given.
    """
    if not location:
        return next(iter(given)) if len(given) == 1 else ""
    exact = [path for path in given if path.split(".") == location[: path.count(".") + 1]]
    within = [path for path in given if path.startswith(f"{location[0]}.")]
    return max(exact or within, key=lambda path: (not path.endswith(".kind"), len(path)), default=".".join(location))


def _add_config(parser: _Parser, config: BaseModel, heading: str, taken: set[str], whole: bool) -> None:
    """Adds a flag for every field of a config; those of nested configs form groups. The help shows all of them if it is
    whole, and otherwise the common ones that this config has.
    """
    leaves = [leaf for leaf in _merged(type(config)) if leaf.path not in taken]
    names = [leaf.path.rpartition(".")[2] for leaf in leaves]
    depths = [leaf.path.count(".") for leaf in leaves]
    title, _, text = heading.partition(": ")
    groups = {"": parser.add_argument_group(title, text)}
    for leaf, name, depth in zip(leaves, names, depths, strict=True):
        nearest = [other for other, named in zip(depths, names, strict=True) if named == name and other <= depth]
        short = [f"--{name.replace('_', '-')}"] if len(nearest) == 1 and depth and name not in taken else []
        title = leaf.path.rpartition(".")[0]
        if title not in groups:
            groups[title] = parser.add_argument_group(title.replace("_", "-"))
        present: Any = config
        for part in leaf.dest.split("."):
            present = getattr(present, part, None if leaf.is_kind else _ABSENT)
        if leaf.alias is None:
            group = groups[title].add_mutually_exclusive_group()  # A field and its second flag.
        visible = whole or (leaf.common and present is not _ABSENT)
        _add(
            group, leaf if whole else leaf._replace(kinds=()), [*short, leaf.flag], f".{leaf.dest}", present,
            argparse.BooleanOptionalAction, visible,
        )  # fmt: skip


def _add(group: Any, leaf: _Leaf, flags: list[str], dest: str, default: Any, switch: Any, visible: bool = True) -> None:
    """Adds an argument; ``switch`` is the action of a boolean."""
    only = f"[{', '.join(leaf.kinds)}] " if leaf.kinds and not leaf.is_kind else ""
    known = default is _ABSENT or "(default: " in leaf.help
    shape: dict[str, Any] = (
        {"action": switch} if leaf.annotation is bool else {"nargs": leaf.nargs, "metavar": leaf.metavar}
    )
    if leaf.alias is not None:
        shape["type"] = partial(leaf.converted, leaf.alias)
        default = default if known else default - leaf.alias.offset
    shown = "" if known else f" (default: {_show(default)})"
    text = f"{only}{leaf.help}{shown}".replace("%", "%%") if visible else argparse.SUPPRESS
    group.add_argument(*flags, dest=dest, default=argparse.SUPPRESS, help=text, **shape)


def _merged(model: type[BaseModel]) -> list[_Leaf]:
    """All leaves; a field that several kinds have becomes one."""
    merged: dict[str, _Leaf] = {}
    for leaf in _leaves(model):
        known = merged.get(leaf.path)
        merged[leaf.path] = known._replace(kinds=known.kinds + leaf.kinds) if known else leaf
    return list(merged.values())


def _leaves(model: type[BaseModel], prefix: str = "", kinds: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    for name, field in model.model_fields.items():
        path, text = f"{prefix}{name}", (field.description or "").removesuffix(".")
        mark = next(iter(marks(field.annotation, field.metadata)), None)
        common = name in getattr(model, "common", ())
        if isinstance(mark, OneOf):
            nested = mark.kinds()
            known = (*nested, *["none"] * (NoneType in get_args(field.annotation)))
            yield _Leaf(f"{path}.kind", str, text, str(Metavar(known)), known)
            for kind, config in nested.items():
                yield from _leaves(config, f"{path}.", (kind,))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{path}.")
        elif name != "kind" and not any(isinstance(each, Filled) for each in field.metadata):
            names = str(Metavar(mark.registry.names())) if isinstance(mark, Named) else _metavar(field.annotation)
            named = next((str(each) for each in field.metadata if isinstance(each, Metavar)), names)
            yield _Leaf(path, field.annotation, text, named, kinds, common)
            for alias in field.metadata:
                if isinstance(alias, Alias):
                    second = f"{prefix}{alias.name}"
                    yield _Leaf(second, field.annotation, alias.help, named, kinds, common, alias, path)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_show(part)}" for key, part in value.items()) or "none"
    if isinstance(value, (tuple, list)):
        return " ".join(_show(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _holds_many(annotation: Any) -> bool:
    return get_origin(annotation) in (tuple, dict) or any(_holds_many(part) for part in get_args(annotation))


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is dict:
        return "KEY=VALUE"
    if marked := [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, Metavar)]:
        return str(marked[0])
    arguments = [part for part in get_args(annotation) if part is not NoneType and part is not Ellipsis]
    if arguments and all(isinstance(part, str) for part in arguments):
        return str(Metavar(arguments))
    return _metavar(arguments[0]) if arguments else str(getattr(annotation, "__name__", "value")).upper()
