"""JSON encoding for views and problems that never fails on a text.

What is shown comes from everywhere (paths, reasons, descriptions, parts of a request), and a text with a lone
surrogate (which is what Python makes of a byte that is not UTF-8) must not make a view or a problem fail.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.ipc.texts import all_encodable

_encode = msgspec.json.Encoder().encode


def to_json(value: Any) -> bytes:
    """JSON on one line."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(all_encodable(value))
