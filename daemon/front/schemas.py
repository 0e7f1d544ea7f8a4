"""Many JSON Schemas into one document: their definitions are lifted to where OpenAPI keeps them, and renamed.

A worker reports each agent's schemas as msgspec makes them: a schema of its own, with ``$defs`` at its root and
references ``#/$defs/NAME`` into them. In one document such a reference would point into the document's root, so the
definitions become ``components/schemas`` and the references follow them.

A definition that is the same wherever it occurs (with all that it refers to) is there once, under its own name, so that
a generated client has one class for it. Where one name has several meanings, each gets the name of the agent and the
side (``body`` or ``result``) it was found at, and the plain name is nobody's: no meaning hangs on the order of agents.

Only keywords that hold schemas are entered. What ``default``, ``const``, ``enum`` or ``examples`` hold is data, and a
``$ref`` in there is no reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

Schema = Any
"""A JSON Schema: an object, or ``true`` or ``false``."""

POINTER: Final = "#/components/schemas/"

_LOCAL: Final = "#/$defs/"
_ONE: Final = frozenset(
    {
        *("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
"""Keywords whose value is a schema."""
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS: Final = frozenset({"$defs", "dependentSchemas", "patternProperties", "properties"})

_canonical = msgspec.json.Encoder(order="deterministic").encode
_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")

Place = tuple[str, str]
"""The agent and the side of it that a schema belongs to."""


def map_refs(schema: Schema, change: Callable[[str], str | None]) -> Schema:
    """A copy in which every reference is what ``change`` says; None takes it away, which allows everything there."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _ONE:
            made[key] = map_refs(value, change)
        elif key in _LISTS and isinstance(value, list):
            made[key] = [map_refs(each, change) for each in value]
        elif key in _MAPS and isinstance(value, dict):
            made[key] = {name: map_refs(each, change) for name, each in value.items()}
        elif key == "$ref" and isinstance(value, str):
            if (target := change(value)) is not None:
                made[key] = target
        elif key == "discriminator" and isinstance(value, dict):
            made[key] = _map_discriminator(value, change)
        else:
            made[key] = value
    return made


def _map_discriminator(value: dict[str, Any], change: Callable[[str], str | None]) -> dict[str, Any]:
    """OpenAPI's own keyword: it maps the values of a property to references."""
    mapping = {each: change(target) for each, target in value.get("mapping", {}).items()}
    return {**value, "mapping": {each: target for each, target in mapping.items() if target is not None}}


def refs(schema: Schema) -> list[str]:
    """All references in a schema, in their order."""
    found: list[str] = []

    def note(target: str) -> str:
        found.append(target)
        return target

    map_refs(schema, note)
    return found


class Bundle:
    """The schemas of all agents, and the components that they refer to."""

    def __init__(self, schemas: Iterable[tuple[Place, Schema]], own: dict[str, Schema]) -> None:
        """``own`` are the document's own components; an agent's definition of such a name gets another."""
        self.components: dict[str, Schema] = dict(own)
        self._named: dict[tuple[str, bytes], str] = {}
        """What a definition's name and meaning are called."""
        self._roots = {place: _Definitions(schema) for place, schema in schemas}
        self._name()
        for definitions in self._roots.values():
            for name, definition in definitions.found.items():
                lifted = self._named[name, definitions.meaning(name)]
                self.components.setdefault(lifted, self._lift(definition, definitions))

    def _name(self) -> None:
        meanings: dict[str, dict[bytes, Place]] = {}
        for place, definitions in self._roots.items():
            for name in definitions.found:
                meanings.setdefault(name, {}).setdefault(definitions.meaning(name), place)
        taken = set(self.components)
        for name, found in meanings.items():
            for meaning, (agent, side) in found.items():
                plain = len(found) == 1 and name not in self.components
                wanted = _UNFIT.sub("_", name if plain else f"{agent}.{side}.{name}")
                while wanted in taken:
                    wanted += "_"
                taken.add(wanted)
                self._named[name, meaning] = wanted

    def schema(self, place: Place) -> Schema:
        """The schema of one side of an agent, with its references into the components."""
        definitions = self._roots[place]
        return self._lift(definitions.root, definitions)

    def _lift(self, schema: Schema, definitions: _Definitions) -> Schema:
        def target(ref: str) -> str | None:
            if not ref.startswith(_LOCAL):
                return None  # nothing that is in this document
            name = ref.removeprefix(_LOCAL)
            return POINTER + self._named[name, definitions.meaning(name)] if name in definitions.found else None

        return map_refs(schema, target)


class _Definitions:
    """One schema, apart from its definitions."""

    def __init__(self, schema: Schema) -> None:
        self.root = schema
        self.found: dict[str, Schema] = {}
        if isinstance(schema, dict) and "$defs" in schema:
            self.root = {key: value for key, value in schema.items() if key != "$defs"}
            self.found = schema["$defs"]
        self._meanings: dict[str, bytes] = {}

    def meaning(self, name: str) -> bytes:
        """The definition with all that it refers to, as a text that equals that of another one that means the same."""
        known = self._meanings.get(name)
        if known is None:
            reached = {each: self.found[each] for each in self._reach(name)}
            known = self._meanings[name] = _canonical(reached)
        return known

    def _reach(self, name: str) -> Iterator[str]:
        seen, new = {name}, [name]
        while new:
            yield (each := new.pop())
            for ref in refs(self.found[each]):
                target = ref.removeprefix(_LOCAL)
                if ref.startswith(_LOCAL) and target in self.found and target not in seen:
                    seen.add(target)
                    new.append(target)
