"""The bundled demonstration: agents that do real work on real input that every machine has.

``echo``, ``sleep``, ``primes`` and ``tokens`` need nothing; ``search`` and ``answer`` look into the documentation of
Python's own standard library, which the first worker to start reads and indexes in PostgreSQL, and ``research`` asks
both of them.
"""

from . import basic, library, research

__all__ = ["basic", "library", "research"]
