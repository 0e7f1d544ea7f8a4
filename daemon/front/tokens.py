"""Bearer tokens: who may do what.

The file has one ``NAME:SCOPE:SHA256HEX`` a line; empty lines and those that begin with ``#`` are skipped. It holds
digests, so whoever reads it learns no token. Make one with::

    token=$(openssl rand -hex 32); echo "alice:call:$(printf %s "$token" | sha256sum | cut -d' ' -f1)"

A token of 256 random bits cannot be guessed, so a plain digest is enough for it, and one that is quick: it is computed
for every request. All digests are compared, each in constant time, whichever of them fits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config.settings import ConfigError
from . import rights

CALL: Final = "call"
ADMIN: Final = "admin"
"""Includes ``call``."""

OPEN: Final = frozenset({"/healthz", "/livez", "/readyz"})
"""Paths for which no token is asked: those who probe them have none."""

DOCS: Final = "/docs/"
"""Above the files of the page for trying agents. They are somebody's published library, and open."""

_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")


def is_open(path: str) -> bool:
    """Whether a path is for everybody: what is probed, and files that hold nothing of this daemon."""
    return path in OPEN or path.startswith(DOCS)


def is_admin(path: str) -> bool:
    """Whether a path is one of the admin routes."""
    return path.startswith("/v1/workers/") or path in ("/v1/workers", "/v1/reload")


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the file."""

    name: str
    scope: str
    digest: bytes

    def allows(self, path: str) -> bool:
        """Whether its holder may use this path."""
        return self.scope == ADMIN or not is_admin(path)


class Tokens:
    """All tokens that are known."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def bearer(self, headers: Mapping[str, str]) -> Token | None:
        """The token that a request brings; None if it brings none, or an unknown one."""
        scheme, _, secret = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        found: Token | None = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found


def load(path: str) -> Tokens | None:
    """The tokens of ``http.tokens_file`` (``ConfigError``); None without a file."""
    if not path:
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"http.tokens_file: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"http.tokens_file: {path}: not UTF-8 text") from error
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            token = _read(line.strip(), f"http.tokens_file: {path}, line {number}")
            if token.name in tokens:
                raise ConfigError(f"http.tokens_file: {path}, line {number}: the name {token.name} is there twice")
            tokens[token.name] = token
    if not tokens:
        raise ConfigError(f"http.tokens_file: {path} has no token, so every request would be refused")
    rights.warn("http.tokens_file", path, rights.WRITE, "other users can write to it, and so create tokens")
    return Tokens(list(tokens.values()))


def _read(line: str, where: str) -> Token:
    """One token. What is wrong is said without the line, which may hold a secret by mistake."""
    name, scope, digest = [*line.split(":"), "", ""][:3]
    if line.count(":") != 2 or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: must be NAME:SCOPE:SHA256HEX, NAME of letters, digits and . _ @ -, at most 64")
    if scope not in (CALL, ADMIN):
        raise ConfigError(f"{where}: the scope must be {CALL} or {ADMIN}")
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{where}: the SHA-256 must be 64 hexadecimal digits")
    return Token(name, scope, bytes.fromhex(digest))
