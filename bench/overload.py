"""More load than the machine can do: what is still done, how late, who is refused, and how soon it is over.

``python -m bench.overload NAME...`` measures some of it: a mix of the staircase (``waiting``, ``computing``, ``database``,
``skewed``), or one of the parts below. What is promised has the number of its row in ``README.rst``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from bench import disturbance, fairness, staircase
from bench.measuring import Result, parser, present

PARTS: Final[dict[str, Callable[[Result, float], None]]] = {
    "fairness": fairness.fairness,
    "priorities": fairness.priorities,
    "obedience": fairness.obedience,
    "deaths": disturbance.deaths,
    "slowdown": disturbance.slowdown,
    "brownout": disturbance.brownout,
    "calm": disturbance.calm,
    "cold": disturbance.cold,
    "refusals": disturbance.refusals,
    "memory": disturbance.memory,
    "price": disturbance.price,
}


def measure(scale: float, names: list[str]) -> Result:
    """``names``: of the mixes and the parts; none: all."""
    result = Result("-".join(["overload", *names]))
    for mix in staircase.mixes():
        if not names or mix.name in names:
            staircase.climb(mix, result, scale)
    for name, part in PARTS.items():
        if not names or name in names:
            part(result, scale)
    return result


def main() -> int:
    """The command."""
    known = [*(mix.name for mix in staircase.mixes()), *PARTS]
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)} (default: all)")
    chosen = options.parse_args()
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        options.error(f"there is no part {unknown[0]!r}; there are {', '.join(known)}")
    present(lambda scale: measure(scale, chosen.names), chosen.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
