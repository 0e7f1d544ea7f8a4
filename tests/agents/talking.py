"""Agents that print and log, in all the ways there are."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

from penstock.workers import Context, agent


@agent
async def say(text: str, ctx: Context) -> int:
    print(text)
    print(f"aside: {text}", file=sys.stderr)
    ctx.log.warning("noted: %s", text)
    return os.getpid()


@agent
async def raise_with(text: str) -> None:
    raise RuntimeError(text)


@agent
async def say_and_die(lines: int) -> None:
    for number in range(lines):
        print(f"last words {number}")
    logging.getLogger("talking").critical("that was all")
    os._exit(9)


@agent
def flood(lines: int) -> int:
    for number in range(lines):
        print(f"{number:09}")
    return lines


@agent
async def leave_a_child(text: str) -> int:
    """A child in a session of its own, which goes on talking when the worker is gone."""
    words = f"echo {text} begins; read x < {text}; echo {text} ends"
    child = subprocess.Popen(["sh", "-c", words], start_new_session=True)
    return child.pid


@agent
def note_at_length(text: str, times: int) -> None:
    """A record of any length, and one with it as the message of an exception."""
    log = logging.getLogger("talking")
    log.warning("%s", text * times)
    try:
        raise RuntimeError(text * times)
    except RuntimeError:
        log.exception("it was raised")


@agent
def note_from_children(text: str, times: int, children: int, records: int) -> None:
    """The same from forked processes, all at once."""
    started = []
    for _ in range(children):
        started.append(os.fork())
        if not started[-1]:
            for _ in range(records):
                logging.getLogger("talking").warning("child: %s", text * times)
            os._exit(0)
    for pid in started:
        os.waitpid(pid, 0)


@agent
async def part(text: str) -> None:
    os.write(1, text.encode())
