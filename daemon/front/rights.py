"""File permissions: warnings where others may read or write the token file or the TLS key."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from typing import Final

log = logging.getLogger("penstock.http")

WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
"""What lets others write: its group, or everybody."""

READ: Final = stat.S_IROTH
"""What lets everybody read."""


def warn(setting: str, path: str, rights: int, consequence: str) -> None:
    """Say it in the log if others have one of these rights. A file that is missing is somebody else's matter."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & rights:
            log.warning("%s: %s has mode %04o: %s", setting, path, mode, consequence)
