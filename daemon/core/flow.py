"""How much of a stream may be on its way: credit in bytes, from the client's socket back to the generator.

A worker starts with ``WINDOW`` bytes and gets back what the client's connection has taken. Credit is given in portions
of a quarter of the window, so that a small item costs no message of its own. A window that was drained within
``QUICK`` is doubled, up to ``WIDEST``, so that a fast reader never waits for credit, while one that is slow holds
little: what is on its way for it is the window, what its worker coalesces (``workers.outflow``) and what its transport
buffers, together no more than 256 KiB, and one item beyond.

Invariant: the credit that was given, the first window included, less the bytes that were taken, is never more than
``size``.
"""

from __future__ import annotations

from typing import Final

WIDEST: Final = 160 * 1024
"""Bytes."""

QUICK: Final = 0.05
"""Seconds in which a whole window has to be taken for it to grow."""

PORTION: Final = 4
"""Credit is given once it comes to this part of the window."""


class Window:
    """One stream's."""

    __slots__ = ("_owed", "_since", "_taken", "size")

    def __init__(self, size: int, now: float) -> None:
        """``size``: bytes that the worker may send unasked."""
        self.size = size
        self._owed = 0
        self._taken = 0
        """Bytes since ``_since``."""
        self._since = now

    def take(self, count: int, now: float, *, may_grow: bool) -> int:
        """The client's connection has taken so many bytes. How many more the worker may send; 0: none yet.

        ``may_grow``: there is room for a wider window.
        """
        self._owed += count
        self._taken += count
        if self._owed * PORTION < self.size:
            return 0
        credit, self._owed = self._owed, 0
        if self._taken >= self.size:
            if may_grow and now - self._since <= QUICK and self.size < WIDEST:
                wider = min(2 * self.size, WIDEST)
                credit += wider - self.size
                self.size = wider
            self._taken, self._since = 0, now
        return credit
