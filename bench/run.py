"""``make bench``: a short set of measurements, printed as tables. ``python -m bench.run NAME...`` runs some of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from bench import batches, cores, crowd, database, echo, founding, observing, pages, respawn, skew, streams
from bench.measuring import Result, parser, present

ALL: Final[dict[str, tuple[Callable[[float], Result], float]]] = {
    "echo": (lambda scale: echo.measure(scale, rounds=3), 0.7),
    "founding": (founding.measure, 0.6),
    "crowd": (crowd.measure, 0.3),
    "cores": (cores.measure, 0.5),
    "skew": (skew.measure, 1.0),
    "respawn": (respawn.measure, 0.5),
    "database": (database.measure, 0.6),
    "observing": (observing.measure, 1.0),
    "pages": (pages.measure, 0.3),
    "streams": (streams.measure, 0.5),
    "batches": (batches.measure, 0.5),
}
"""Each benchmark and its scale in the short set."""


def main() -> int:
    """Run what is asked for, or all; say at the end which promises were missed."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)} (default: all)")
    chosen = options.parse_args()
    unknown = [name for name in chosen.names if name not in ALL]
    if unknown:
        options.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(ALL)}")
    missed: list[str] = []
    for name in chosen.names or ALL:
        measure, scale = ALL[name]
        result = present(measure, scale * chosen.scale)
        missed += [f"{name}: {check}" for check in result.checks if not check.kept]
    print("\n".join(missed) or "All promises were kept.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
