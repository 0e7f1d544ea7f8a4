"""Whatever types agents have, the document is valid and says of them what their own schemas say."""

from __future__ import annotations

import itertools
import sys
import types
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from penstock.daemon.front.openapi import build
from penstock.daemon.front.operations import OPERATIONS
from penstock.daemon.front.schemas import Bundle
from tests.fix_listing import listing

NAMES = ("Query", "Hit", "Problem", "Agent")
"""Few, so that agents share them, and two that the document has itself."""

FIELDS = ("text", "$ref", "default", "properties", "$defs", "discriminator", "items")

_numbers = itertools.count()

scalars = st.sampled_from(
    [
        "int",
        "str",
        "bool",
        "float",
        "bytes",
        "Any",
        "Colour",
        "Literal['a', 1]",
        "datetime.datetime",
        "Box[int]",
        "Least",
    ]
)
classes = st.sampled_from(NAMES)
unions = st.lists(classes, min_size=2, max_size=3, unique=True).map(" | ".join)
written = st.recursive(
    scalars | classes | unions,
    lambda inner: st.one_of(
        inner.map("list[{}]".format),
        inner.map("dict[str, {}]".format),
        inner.map("{} | None".format),
        st.tuples(inner, inner).map(lambda pair: f"tuple[{pair[0]}, {pair[1]}]"),
        inner.map("Box[{}]".format),
    ),
    max_leaves=4,
)
fields = st.lists(st.tuples(written, st.sampled_from(FIELDS)), min_size=1, max_size=3, unique_by=lambda pair: pair[1])
modules = st.fixed_dictionaries(dict.fromkeys(NAMES, fields))

HEAD = """
from __future__ import annotations
import datetime, enum, msgspec
from typing import Annotated, Any, Generic, Literal, TypeVar
T = TypeVar("T")
Least = Annotated[int, msgspec.Meta(ge=1, examples=[{"$ref": "#/$defs/Nothing"}])]
class Colour(enum.Enum):
    RED = "red"
class Box(msgspec.Struct, Generic[T]):
    inner: T | None = None
"""


def code(module: dict[str, list[tuple[str, str]]]) -> str:
    """The source of a module with these classes, which may refer to each other and to themselves."""
    lines = [HEAD]
    for name, found in module.items():
        names = {f"f{number}": field for number, (_, field) in enumerate(found)}
        lines.append(f"class {name}(msgspec.Struct, tag=True, tag_field='kind', rename={names!r}):")
        lines += [f"    f{number}: {annotation}" for number, (annotation, _) in enumerate(found)]
    return "\n".join(lines)


def schemas(source: str, roots: list[str]) -> list[dict[str, Any]]:
    """The JSON Schemas of expressions in a module of this source."""
    module = types.ModuleType(f"made_{next(_numbers)}")
    sys.modules[module.__name__] = module
    try:
        exec(source, module.__dict__)
        return [msgspec.json.schema(eval(root, module.__dict__)) for root in roots]
    finally:
        del sys.modules[module.__name__]


def same(theirs: Any, ours: Any, definitions: dict[str, Any], components: dict[str, Any], seen: set[Any]) -> None:
    """Fail unless both schemas say the same when every reference is followed."""
    if (
        isinstance(theirs, dict)
        and isinstance(theirs.get("$ref"), str)
        and theirs["$ref"].removeprefix("#/$defs/") in definitions
    ):
        pair = (theirs["$ref"], ours["$ref"])
        if pair not in seen:
            seen.add(pair)
            followed = components[ours["$ref"].removeprefix("#/components/schemas/")]
            same(definitions[theirs["$ref"].removeprefix("#/$defs/")], followed, definitions, components, seen)
        theirs, ours = ({key: value for key, value in each.items() if key != "$ref"} for each in (theirs, ours))
    if isinstance(theirs, dict):
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            if key == "mapping":
                one, other = ([{"$ref": each} for each in mapping.values()] for mapping in (value, ours[key]))
                same(one, other, definitions, components, seen)
            else:
                same(value, ours[key], definitions, components, seen)
    elif isinstance(theirs, list):
        assert len(theirs) == len(ours)
        for one, other in zip(theirs, ours, strict=True):
            same(one, other, definitions, components, seen)
    else:
        assert theirs == ours


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(modules, written, written), min_size=1, max_size=3))
def test_any_types_make_a_valid_document_that_says_the_same(made: list[tuple[Any, str, str]]) -> None:
    sides: list[tuple[tuple[str, str], Any]] = []
    listings = []
    for number, (module, body, result) in enumerate(made):
        found = schemas(code(module), [body, result])
        name = f"agent-{number}.x"
        sides += [((name, "body"), found[0]), ((name, "result"), found[1])]
        listings.append(listing(name, *found))
    document = build(listings, set(OPERATIONS) | {("POST", "/v1/agents/{agent}")}, secured=True)
    validate(document)
    assert len([path for path in document["paths"] if path.endswith(".x")]) == len(made)
    bundle = Bundle(sides, {"Problem": {}, "Agent": {}})
    assert bundle.components["Problem"] == {}
    for place, theirs in sides:
        rest = {key: value for key, value in theirs.items() if key != "$defs"}
        same(rest, bundle.schema(place), theirs.get("$defs", {}), bundle.components, set())
