"""The bundled demonstration: agents that do real work on real input that every machine has.

``echo``, ``sleep``, ``primes`` and ``tokens`` need nothing; ``search``, ``answer`` and ``similar`` look into the
documentation of Python's own standard library, which the first worker to start reads and indexes in PostgreSQL, and
``research`` asks others of them.
"""

from . import basic, library, research, similar

__all__ = ["basic", "library", "research", "similar"]
