"""The exit status of a process as text: status or signal."""

from __future__ import annotations

import os
import signal


def status_of(wait_status: int) -> int:
    """Exit status, or minus the number of the signal."""
    return os.waitstatus_to_exitcode(wait_status)


def describe(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "status unknown"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
