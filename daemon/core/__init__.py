"""What the supervisor decides, without any I/O.

Nothing in this package reads a clock, opens a socket, starts a timer or draws a random number of its own: the time
is an argument (``now``, monotonic seconds), randomness a ``random.Random`` given at construction, configuration
frozen. So every decision can be tested exhaustively, and the whole of it simulated in virtual time.

The invariants, tested as such in ``tests/property`` and ``tests/sim``:

* every admitted request ends exactly once;
* a worker never has more calls than slots, nor more sync calls than threads, nor more of an agent than its limit;
* what waits never exceeds the marks, except by requests that a dead worker gave back;
* nothing is sent to a worker that is not serving;
* a slot is free only when its worker said so or is dead;
* the same trace (and seed) gives the same decisions.
"""
