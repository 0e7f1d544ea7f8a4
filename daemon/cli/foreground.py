"""``penstock ctl fg``: the thread that shows a worker's output while supervisorctl reads commands for it.

supervisorctl's own thread checks only every thirty seconds whether it was told to end, and never if it was told before
it had connected; a shell whose input has ended would wait for it.
"""

from __future__ import annotations

import threading
from typing import Final

from supervisor import supervisorctl

INTERVAL: Final = 0.1
"""Seconds between two checks."""

PATIENCE: Final = 5.0
"""Seconds that it may take to end."""


class Foreground(supervisorctl.fgthread):  # type: ignore[misc] # supervisor has no annotations
    """Follows the output and the error of one worker until it is killed."""

    def __init__(self, program: str, controller: object) -> None:
        super().__init__(program, controller)
        self.daemon = True

    def run(self) -> None:
        """As supervisorctl's, but for the interval."""
        url = self.ctl.options.serverurl
        for handler, source in ((self.output_handler, "stdout"), (self.error_handler, "stderr")):
            handler.get(url, f"/logtail/{self.program}/{source}")
        supervisorctl.asyncore.loop(INTERVAL)

    def kill(self) -> None:
        """End it, and close what it used."""
        self.killed = True  # makes its trace function end it at its next line
        self.join(PATIENCE)
        for handler in (self.output_handler, self.error_handler):
            if handler.socket is None:
                continue
            if "_fileno" in vars(handler):
                handler.close()
            else:
                # It was ended between making its socket and taking it up, and asyncore cannot close that.
                handler.socket.close()

    @classmethod
    def end_all(cls) -> None:
        """End those that nobody has ended."""
        for thread in threading.enumerate():
            if isinstance(thread, cls):
                thread.kill()
