"""Registries: the dictionaries of everything that a config can name, open to code outside the package.

An entry can be added at any time before a config is validated, ``SAMPLERS["mine"] = my_sampler``, or an installed
package declares it as an entry point. Model files record which plug-ins they need; they never cause an import.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pocketdiff.errors import PluginError
from pocketdiff.frozen import Frozen, Text

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """A dictionary of implementations by name. ``noun`` is what an entry is, such as "sampler"; ``group`` is the group
    of installed packages' entry points.
    """

    def __init__(self, noun: str, group: str, entries: Mapping[str, Entry] | None = None) -> None:
        super().__init__(entries or {})
        self.noun, self.group = noun, group

    def find(self, name: object) -> Entry:
        """The entry of this name; an installed package's entry point is imported when it is first needed.

        Raises:
            ValueError: If there is no such entry.
            PluginError: If the installed package cannot be imported.
        """
        if not isinstance(name, str):
            raise ValueError(f"the kind of the {self.noun} is missing; use {', '.join(self.names())}")
        if name not in self and (point := _installed(self.group).get(name)):
            try:
                self[name] = point.load()
            except Exception as error:
                raise PluginError(f"the {self.noun} {name!r} cannot be imported from {point.value}: {error}") from error
        if name not in self:
            raise ValueError(f"there is no {self.noun} {name!r}; use {', '.join(self.names())}")
        return self[name]

    def names(self) -> list[str]:
        """The names of all entries, those of installed packages included."""
        return list(dict.fromkeys([*self, *_installed(self.group)]))

    def usable(self) -> dict[str, Entry]:
        """All entries by name, without those that cannot be imported; `find` says why."""
        for name in self.names():
            with contextlib.suppress(PluginError):
                self.find(name)
        return dict(self)


@dataclass(frozen=True, eq=False)
class Named:
    """Marks a string field whose value is a registry's key: ``Annotated[str, Named(SAMPLERS)]``."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(name: str) -> str:
            self.registry.find(name)
            return name

        return core_schema.no_info_after_validator_function(check, handler(source))


@dataclass(frozen=True, eq=False)
class OneOf:
    """Marks a field that holds a config of any registered kind: ``Annotated[NetConfig, OneOf(NETS)]``. An entry is a
    config class, or an object whose attribute ``config`` is one.
    """

    registry: Registry[Any]

    def kinds(self) -> dict[str, type[Frozen]]:
        """The config class of each kind."""
        return {name: self._config(name) for name in self.registry.usable()}

    def _config(self, kind: object) -> type[Frozen]:
        entry = self.registry.find(kind)
        return entry if isinstance(entry, type) else entry.config

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def choose(value: Any) -> Frozen:
            if isinstance(value, Mapping):
                return self._config(value.get("kind")).model_validate(value)
            if not isinstance(value, cls := self._config(getattr(value, "kind", None))):
                raise ValueError(f"must be a {cls.__name__}")
            return value

        return core_schema.no_info_plain_validator_function(choose)


class Plugin(Frozen):
    """An entry from outside the package that a config needs, with its module and, if installed, ``name==version``."""

    noun: Text
    name: Text
    module: Text
    package: Text | None = None

    def remedy(self) -> str:
        """How to make it available."""
        if self.package:
            return f"pip install {self.package}"
        return f"import the module {self.module!r} first (on the command line: --plugin {self.module})"


def plugins(config: BaseModel) -> dict[str, Any]:
    """A config's entries from outside the package, as a file lists them: under ``plugins``, if there are any."""
    named = list(_named(config))
    if kind := getattr(config, "kind", None):  # A method's config, which stands in no field.
        named.append(("method", kind, type(config)))
    found = [plugin.model_dump(mode="json") for entry in named if (plugin := _plugin(*entry))]
    return {"plugins": found} if found else {}


def _named(config: BaseModel) -> Iterator[tuple[str, str, Any]]:
    """Noun, name and entry of every name in a config and its nested configs."""
    for name, field in type(config).model_fields.items():
        if (value := getattr(config, name)) is None:
            continue
        for mark in marks(field.annotation, field.metadata):
            key = value if isinstance(value, str) else value.kind
            yield mark.registry.noun, key, mark.registry[key]
        if isinstance(value, BaseModel):
            yield from _named(value)


def marks(annotation: Any, metadata: list[Any]) -> list[Named | OneOf]:
    """The registry marks of a field, also inside ``X | None``."""
    nested = [part for arg in getattr(annotation, "__args__", ()) for part in getattr(arg, "__metadata__", ())]
    return [mark for mark in [*metadata, *nested] if isinstance(mark, Named | OneOf)]


def _plugin(noun: str, name: str, entry: Any) -> Plugin | None:
    while isinstance(entry, partial):
        entry = entry.func
    module = str(getattr(entry, "__module__", ""))
    root = module.partition(".")[0]
    if root == __name__.partition(".")[0]:
        return None
    if root == "__main__":  # The name of the script says more.
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or root).stem
    packages = packages_distributions().get(root)
    package = f"{packages[0]}=={version(packages[0])}" if packages else None
    return Plugin(noun=noun, name=name, module=module, package=package)


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}
