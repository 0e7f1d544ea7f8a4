"""Makes texts with lone surrogates encodable as UTF-8.

Python holds a byte that is not UTF-8 (of a header, a path, an argument, the environment) as a lone surrogate, and what
encodes such a text raises. Where it must arrive as it was, it travels as bytes (``frames``); everywhere else it is
enough that people see what was there.
"""

from __future__ import annotations

from typing import Any

import msgspec


def encodable(text: str) -> str:
    """The text, each lone surrogate of it written out: ``\\udcff`` stands for the byte ff."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def all_encodable(value: Any) -> Any:
    """The same as plain data, every text in it ``encodable``, the names in mappings too. Bytes stay bytes."""
    return _all(msgspec.to_builtins(value, builtin_types=(bytes,)))


def _all(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_all(name): _all(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_all(each) for each in value]
    return value
