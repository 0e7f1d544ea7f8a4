"""What authors of agents import, and the program that runs their agents.

An agent is a function with ``@agent``; the worker processes of the daemon load it and answer requests with it. See
``agent`` for the settings, ``Context`` for what an agent can learn about its request, ``concurrency`` for what helps
to write one that behaves under load, ``serve`` to run functions without any file.
"""

from . import concurrency
from .agent import AgentError, agent, on_start, on_stop
from .context import CallFailed, Context, Interrupted
from .response import Response
from .serve import serve

__all__ = [
    "AgentError",
    "CallFailed",
    "Context",
    "Interrupted",
    "Response",
    "agent",
    "concurrency",
    "on_start",
    "on_stop",
    "serve",
]
