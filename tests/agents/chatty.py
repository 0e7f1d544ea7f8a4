"""Prints when it starts and when it gets SIGUSR1, and does not start while the file ``$CHATTY_BROKEN`` is there.

As a program of its own it does the same under a real supervisord, so that the two can be compared.
"""

import os
import signal
import sys
from types import FrameType


def hello() -> None:
    if os.path.exists(os.environ["CHATTY_BROKEN"]):
        raise RuntimeError("told to fail")
    signal.signal(signal.SIGUSR1, more)
    print("hello", flush=True)


def more(number: int, frame: FrameType | None) -> None:
    print("usr1 ä", flush=True)
    print("on stderr", file=sys.stderr, flush=True)


if __name__ == "__main__":
    hello()
    while True:
        signal.pause()
else:
    from penstock.workers import agent, on_start

    on_start(hello)

    @agent
    async def echo(body: object = None) -> object:
        return body
