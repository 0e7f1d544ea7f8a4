"""The owner of a Unix socket: user and group names of the configuration to the ids of this host."""

from __future__ import annotations

import grp
import pwd

from .settings import ConfigError


def owner(setting: str, given: str) -> tuple[int, int]:
    """Ids of ``USER:GROUP``, -1 for what is not given (``ConfigError`` for those that this host does not have)."""
    user, _, group = given.partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        gid = -1 if not group else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise ConfigError(f"{setting}: {given!r}: there is no such user or group on this host") from error
    return uid, gid
