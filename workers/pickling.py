"""How dill pickles a ``msgspec.Struct`` or an ``Enum`` that cannot be imported, such as a script's.

dill rebuilds other classes by calling their metaclass. A Struct's refuses, since what it
made of the class (slots, say) is no longer what it was made from, and an Enum's members need their class before it is
there. So these two are rebuilt from their fields, or members, and what else was written into them.

And how it pickles functions that call each other: ``pickled``.
"""

from __future__ import annotations

import builtins
import enum
import functools
import inspect
import sys
import threading
import typing
from types import FunctionType
from typing import Any, Final

import dill
import dill.detect
import msgspec
from msgspec.structs import fields

_MADE: Final = (
    "__module__",
    "__qualname__",
    "__doc__",
    "__slots__",
    "__annotations__",
    "__match_args__",
    "__weakref__",
)
_OPTIONS: Final = (
    *("frozen", "eq", "order", "array_like", "gc", "weakref", "dict", "cache_hash"),
    *("omit_defaults", "repr_omit_defaults", "forbid_unknown_fields", "tag", "tag_field"),
)

Field = tuple[str, Any, dict[str, Any]]
"""Name, annotation, and the default as an argument of ``msgspec.field``."""

_pickling = threading.Lock()


def pickled(value: Any) -> bytes:
    """The value as dill pickles it, functions with the globals that they use, and no others."""
    theirs = dill.detect.globalvars
    with _pickling:
        dill.detect.globalvars = _globals_of
        try:
            return bytes(dill.dumps(value, recurse=True))
        finally:
            dill.detect.globalvars = theirs


def _globals_of(function: Any, recurse: bool = True, builtin: bool = False) -> dict[str, Any]:
    """The globals that a function uses, by name; in place of dill's ``globalvars``, with its parameters.

    dill's looks into the functions that it finds, too, and for ever into those that call each other. There is no need
    to: each of them is pickled with its own.
    """
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        return {}
    known = {**(vars(builtins) if builtin else {}), **function.__globals__}
    return {name: known[name] for name in dill.detect.nestedglobals(function.__code__) if name in known}


@dill.register(type(msgspec.Struct))  # type: ignore[untyped-decorator] # dill has no annotations
def _save_struct(pickler: Any, struct: type[msgspec.Struct]) -> None:
    _save(pickler, struct, _make_struct, _parts_of_struct)


@dill.register(enum.EnumMeta)  # type: ignore[untyped-decorator]
def _save_enum(pickler: Any, kind: type[enum.Enum]) -> None:
    _save(pickler, kind, _make_enum, _parts_of_enum)


@dill.register(msgspec.Meta)  # type: ignore[untyped-decorator]
def _save_meta(pickler: Any, meta: msgspec.Meta) -> None:
    given = {name: value for name, value, *_ in meta.__rich_repr__() if value is not None}
    pickler.save_reduce(functools.partial(msgspec.Meta, **given), (), obj=meta)


def _save(pickler: Any, kind: type, make: Any, parts: Any) -> None:
    if _can_be_imported(kind):
        pickler.save_global(kind)
    else:
        pickler.save_reduce(make, parts(kind), obj=kind)


def _can_be_imported(kind: type) -> bool:
    if kind.__module__ == "__main__":
        return False
    try:
        found: object = functools.reduce(getattr, kind.__qualname__.split("."), sys.modules[kind.__module__])
    except (AttributeError, KeyError):
        return False
    return found is kind


def _parts_of_struct(struct: type[msgspec.Struct]) -> tuple[Any, ...]:
    hints = typing.get_type_hints(struct, include_extras=True)
    named = inspect.signature(struct).parameters
    plain: list[Field] = []
    by_name: list[Field] = []
    for each in fields(struct):
        default: dict[str, Any] = {}
        if each.default_factory is not msgspec.NODEFAULT:
            default["default_factory"] = each.default_factory
        elif each.default is not msgspec.NODEFAULT:
            default["default"] = each.default
        of_kind = by_name if named[each.name].kind is inspect.Parameter.KEYWORD_ONLY else plain
        of_kind.append((each.name, hints[each.name], default))
    options = {name: getattr(struct.__struct_config__, name) for name in _OPTIONS}
    options["rename"] = {each.name: each.encode_name for each in fields(struct)}
    namespace: dict[str, Any] = {}
    for base in reversed(struct.__mro__[: struct.__mro__.index(msgspec.Struct)]):
        namespace |= {
            name: value
            for name, value in vars(base).items()
            if name not in _MADE and not name.startswith("__struct_") and not inspect.ismemberdescriptor(value)
        }
    return struct.__name__, plain, by_name, {**namespace, "__doc__": struct.__doc__}, options


def _make_struct(
    name: str, plain: list[Field], by_name: list[Field], namespace: dict[str, Any], options: dict[str, Any]
) -> type[msgspec.Struct]:
    def made(some: list[Field]) -> list[Any]:
        return [(each, hint, msgspec.field(**default)) if default else (each, hint) for each, hint, default in some]

    if not by_name:
        return msgspec.defstruct(name, made(plain), namespace=namespace, module=__name__, **options)
    bases = (msgspec.defstruct(name, made(plain), module=__name__, **options),)
    return msgspec.defstruct(
        name, made(by_name), bases=bases, namespace=namespace, module=__name__, kw_only=True, **options
    )


def _parts_of_enum(kind: type[enum.Enum]) -> tuple[Any, ...]:
    methods = {name: value for name, value in vars(kind).items() if isinstance(value, (FunctionType, property))}
    *mixed_in, base = kind.__bases__
    members = [(name, member.value) for name, member in kind.__members__.items()]
    return base, mixed_in[0] if mixed_in else None, kind.__name__, members, methods


def _make_enum(
    base: Any, mixed_in: type | None, name: str, members: list[tuple[str, Any]], methods: dict[str, Any]
) -> Any:
    made: Any = base(name, members, type=mixed_in, module=__name__)
    for each, value in methods.items():
        if each not in vars(made):
            setattr(made, each, value)
    return made
