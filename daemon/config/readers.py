"""Readers of settings: a raw value to the setting's own type, or ``ValueError`` with what is allowed."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import Any, Final

from penstock.ipc.texts import encodable

from ..host.state import SUN_PATH

Reader = Callable[[Any], Any]
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)?")
_SIZES: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LONGEST: Final = 365 * 86400.0
"""Seconds: more than a year is a slip, and what is much more no clock can count to."""
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def duration(least: float = 0.0, above: bool = True) -> Reader:
    """Seconds, as a number or ``"3s"``; above ``least``, or ``least`` and more; at most a year."""
    words = "above" if above else "from"
    allowed = f'seconds {words} {least:g} up to 365 days, as a number or "250ms", "3s", "5m", "7d"'

    def read(value: Any) -> float:
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            value = float(match[1]) * _UNITS[match[2]]
        # Not a number compares false to everything, so it fails here too.
        if not _is_number(value) or not least <= value <= LONGEST or (above and value == least):
            raise ValueError(allowed)
        return float(value)

    return read


def size(least: int = 1) -> Reader:
    """Bytes, as an integer or ``"64KiB"``."""
    allowed = f'bytes from {least} up, as an integer or "64KiB", "8MiB"'

    def read(value: Any) -> int:
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            value = int(match[1]) * _SIZES[match[2] or "B"]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(allowed)
        return value

    return read


def integer(least: int, most: int = 1_000_000) -> Reader:
    """A whole number in a range."""

    def read(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"an integer from {least} to {most}")
        return value

    return read


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return _utf8(value)


def _utf8(value: str) -> str:
    """A text from an argument or the environment may hold bytes that are none, and that workers, libpq and ZeroMQ could
    not be told.
    """
    if encodable(value) != value:
        raise ValueError("UTF-8 text")
    return value


def conninfo(value: Any) -> str:
    """Empty, ``off``, or what libpq takes: a URI, or words with ``=`` between."""
    if not isinstance(value, str) or (value not in ("", "off") and "=" not in value and "://" not in value):
        raise ValueError('empty, "off", "postgresql://..." or "host=... dbname=..."')
    return _utf8(value)


def one_of(*choices: str) -> Reader:
    """One of a few words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return read


def strings(value: Any) -> list[str]:
    """A list of non-empty strings; one string stands for itself."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise ValueError('a list of strings, with at least one, such as ["a", "b"]')
    return [_utf8(each) for each in value]


def address(value: Any) -> str:
    """``HOST:PORT``, ``[V6]:PORT`` or ``unix:/PATH``. With port 0 the system chooses one that is free."""
    allowed = '"HOST:PORT" (port 0 to 65535; 0: any that is free), "[IPV6]:PORT" or "unix:/ABSOLUTE/PATH"'
    if not isinstance(value, str):
        raise ValueError(allowed)
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > SUN_PATH:
            raise ValueError(f"{allowed} of at most {SUN_PATH} bytes")
        return value
    host, _, port = value.rpartition(":")
    if not _is_host(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(allowed)
    return value


def _is_host(host: str) -> bool:
    """Whether it has the form of a name, of an IPv4 address, or of an IPv6 address in brackets."""
    if not host.startswith("["):
        return _HOST.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return host.endswith("]")


def second_address(value: Any) -> str:
    """As ``address``; empty for none."""
    return "" if value == "" else address(value)


def absolute_path(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value or (value and not os.path.isabs(os.path.expanduser(value))):
        raise ValueError("an absolute path, or empty for the default")
    return os.path.expanduser(value)


def socket_path(value: Any) -> str:
    match = absolute_path(value)
    if len(os.fsencode(match)) > SUN_PATH:
        raise ValueError(f"an absolute path of at most {SUN_PATH} bytes, which is all that a Unix socket's can have")
    return match


def file_mode(value: Any) -> int:
    """Permission bits in octal digits."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('permission bits in octal as a string, such as "0600" or "0660"')
    return int(value, 8)


def user_and_group(value: Any) -> str:
    """``USER``, ``USER:GROUP`` or ``:GROUP``; empty for the daemon's own."""
    if not isinstance(value, str) or (value and not re.fullmatch(r"[^:\s]*(:[^:\s]+)?", value)):
        raise ValueError('"USER", "USER:GROUP" or ":GROUP", or empty')
    return value
