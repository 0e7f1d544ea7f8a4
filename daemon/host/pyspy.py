"""py-spy as a child process: the stacks of a process, or a recording of where its time goes.

py-spy reads another process's memory from outside, so it works on one that is stuck, and needs nothing of it but the
kernel's permission. It stops the process for a moment at each sample. Here it is given no more than it needs: an empty
environment, a session of its own (the terminal's Ctrl-C is not for it), a bounded time, and for its output a file in
memory of bounded size. It never outlives the coroutine that runs it: when that is cancelled the child is killed and
reaped. py-spy seizes processes (``PTRACE_SEIZE``), so that one runs on when its tracer is killed.

A recording always ends by SIGINT, since py-spy's own ``--duration`` takes whole seconds only; that is the safety net
for the case that this process is killed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import math
import os
import re
import resource
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

LARGEST: Final = 64 * 1024 * 1024
"""Bytes that py-spy may write."""

BEGIN_PATIENCE: Final = 5.0
"""Seconds until it must have begun to sample."""

WRITE_PATIENCE: Final = 20.0
"""Seconds that it may take to write a recording, once it was told to end."""

FORMATS: Final = ("flamegraph", "speedscope", "raw")

_SAMPLING: Final = b"Sampling process"
_WROTE: Final = re.compile(rb"Samples: (\d+) Errors: (\d+)")
_NOTHING: Final = b"No stack counts found"
_TRACED: Final = re.compile(r"^(State|TracerPid|Uid|Seccomp):\s+(\S+)", re.MULTILINE)


class SpyError(Exception):
    """py-spy could not do it. One line that says why, and what to do if anything can be done."""


class Frame(msgspec.Struct, frozen=True):
    """One frame; Python code only, C code shows as the Python function that called it."""

    name: str
    short_filename: str | None
    line: int

    def __str__(self) -> str:
        return f"{self.name} ({self.short_filename}:{self.line})" if self.short_filename else f"{self.name} (?)"


class Thread(msgspec.Struct, frozen=True):
    """One thread and its frames, the innermost first."""

    thread_name: str | None
    os_thread_id: int | None
    active: bool
    owns_gil: bool
    frames: tuple[Frame, ...]

    @property
    def state(self) -> str:
        """In py-spy's words."""
        return "active+gil" if self.owns_gil else "active" if self.active else "idle"

    def __str__(self) -> str:
        head = f'Thread {self.os_thread_id or "?"} ({self.state}): "{self.thread_name or ""}"'
        return "\n".join([head, *(f"    {frame}" for frame in self.frames)])


class Recording(msgspec.Struct, frozen=True):
    """What py-spy wrote."""

    output: bytes
    samples: int


_decode: Final = msgspec.json.Decoder(list[Thread]).decode


@functools.cache
def program() -> str:
    """The path of py-spy (``SpyError``): the installed distribution's own, else the one beside this Python.

    ``$PATH`` is not asked: a service has a short one, and a virtual environment need not be active.
    """
    candidates: list[Path] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("py-spy") or []
        candidates += [Path(str(file.locate())).resolve() for file in files if file.name == "py-spy"]
    candidates.append(Path(sys.executable).with_name("py-spy"))
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise SpyError(f"py-spy is not installed beside {sys.executable}: pip install py-spy")


async def dump(pid: int, timeout: float, nonblocking: bool = False) -> list[Thread]:
    """The stacks of all threads of a process (``SpyError``). ``timeout``: seconds.

    ``nonblocking``: do not stop the process meanwhile; it may then be seen between two states. One that cannot be
    stopped, since it is stopped already or somebody else traces it, is sampled in that way in any case.
    """
    nonblocking = nonblocking or _held(pid)
    try:
        async with asyncio.timeout(timeout):
            try:
                return await _dump(pid, nonblocking)
            except SpyError:
                if nonblocking or not _held(pid):
                    raise
                return await _dump(pid, nonblocking=True)
    except TimeoutError:
        raise SpyError(f"py-spy did not get the stacks within {timeout:g} s") from None


async def _dump(pid: int, nonblocking: bool) -> list[Thread]:
    with _memory("penstock stacks") as output:
        words = ["dump", "--pid", str(pid), "--json", *(["--nonblocking"] if nonblocking else [])]
        async with _Child(words, stdout=output) as child:
            said = await child.end()
        if child.status != 0:
            raise SpyError(_explain(pid, child.status, said))
        try:
            return _decode(_read(output))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise SpyError(f"py-spy's output cannot be read: {error}") from error


async def record(pid: int, seconds: float, form: str) -> Recording:
    """Sample a process 100 times a second for so long (``SpyError``). ``form`` is one of ``FORMATS``.

    The recording ends early when the process does.
    """
    with _memory("penstock recording") as output:
        words = ["record", "--pid", str(pid), "--format", form, "--output", f"/proc/self/fd/{output}"]
        words += ["--duration", str(math.ceil(seconds) + 1), *(["--nonblocking"] if _held(pid) else [])]
        async with _Child(words, keep=output) as child:
            if await child.heard(_SAMPLING, BEGIN_PATIENCE):
                await child.interrupt_after(seconds)
            said = await child.end(WRITE_PATIENCE)
        wrote = _WROTE.search(said)
        if wrote is not None:
            return Recording(_read(output), int(wrote[1]))
        if _NOTHING in said:
            return Recording(b"", 0)
        raise SpyError(_explain(pid, child.status, said))


class _Child:
    """One run of py-spy; at the end of the block it is dead and reaped, whatever happens in it."""

    def __init__(self, words: list[str], *, stdout: int | None = None, keep: int | None = None) -> None:
        """``stdout``: a descriptor for its output, which else counts as said; ``keep``: one that it inherits."""
        self._words = words
        self._stdout = stdout
        self._keep = () if keep is None else (keep,)
        self.said = b""
        """What it said to people, as far as it was heard."""

    async def __aenter__(self) -> _Child:
        starting = asyncio.ensure_future(self._start())
        try:
            self._process = await asyncio.shield(starting)
        except OSError as error:
            raise SpyError(f"py-spy could not be started: {error.strerror}") from error
        except asyncio.CancelledError:
            self._process = await starting
            await self.__aexit__()
            raise
        stream = self._process.stderr if self._process.stdout is None else self._process.stdout
        assert stream is not None
        self._stream = stream
        with contextlib.suppress(OSError):  # it has ended already
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
        return self

    def _start(self) -> Coroutine[Any, Any, asyncio.subprocess.Process]:
        pipe, own = asyncio.subprocess.PIPE, self._stdout is None
        return asyncio.create_subprocess_exec(
            program(),
            *self._words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=pipe if own else self._stdout,
            stderr=asyncio.subprocess.STDOUT if own else pipe,
            env={},
            pass_fds=self._keep,
            start_new_session=True,
        )

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._kill()
            await self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    @property
    def status(self) -> int:
        status = self._process.returncode
        return -signal.SIGKILL if status is None else status

    async def heard(self, words: bytes, timeout: float) -> bool:
        """Wait until it has said these words. False: it ended without; it is killed if it does not say them in time."""
        try:
            async with asyncio.timeout(timeout):
                while words not in self.said and (more := await self._stream.read(4096)):
                    self.said += more
        except TimeoutError:
            self._kill()
        return words in self.said

    async def interrupt_after(self, seconds: float) -> None:
        """Tell it to come to an end, unless it does so before."""
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)

    async def end(self, timeout: float | None = None) -> bytes:
        """Everything that it said, once it has ended. After ``timeout`` seconds it is killed."""
        try:
            async with asyncio.timeout(timeout):
                while more := await self._stream.read(4096):
                    self.said = (self.said + more)[-65536:]
                await self._process.wait()
        except TimeoutError:
            pass  # the end of the block kills it, and its status tells
        return self.said


@contextlib.contextmanager
def _memory(name: str) -> Iterator[int]:
    """The descriptor of an empty file that is on no disk."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _facts(pid: int | str) -> dict[str, str]:
    """What ``/proc/PID/status`` says that matters here; empty if the process is gone."""
    try:
        return dict(_TRACED.findall(Path(f"/proc/{pid}/status").read_text(errors="replace")))
    except OSError:
        return {}


def _held(pid: int) -> bool:
    """Whether a process is stopped, or traced by somebody."""
    facts = _facts(pid)
    return facts.get("State", "") in ("T", "t") or facts.get("TracerPid", "0") != "0"


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (SIGSTOP, a terminal's Ctrl-Z)."""
    return _facts(pid).get("State", "") == "T"


def _explain(pid: int, status: int, said: bytes) -> str:
    """Why it failed, in one line."""
    text = said.decode(errors="replace")
    facts = _facts(pid)
    if not facts or facts["State"] in ("Z", "X"):
        return "the process has ended"
    if status == -signal.SIGKILL:
        return "py-spy did not exit in time, and was killed"
    if status == -signal.SIGXFSZ:
        return f"the output of py-spy is larger than {LARGEST // 1024**2} MiB"
    if "ermission denied" in text or "Permission Denied" in text or "not permitted" in text:
        return _forbidden(pid, facts)
    error = re.search(r"^Error: (.*?)$", text, re.MULTILINE)
    causes = re.findall(r"^ +\d+: (.*)$", text.partition("Stack backtrace")[0], re.MULTILINE)
    if error is None:
        return f"py-spy ended with status {status}"
    return "py-spy failed: " + ": ".join([error[1], *causes[-1:]])[:300]


def _forbidden(pid: int, facts: dict[str, str]) -> str:
    """Who does not allow it, and how it is allowed."""
    own = _facts("self")
    scope = _yama_scope()
    if facts.get("TracerPid", "0") != "0":
        return f"process {facts['TracerPid']} traces it already, and only one can (a debugger, strace)"
    if facts["Uid"] != own["Uid"] and own["Uid"] != "0":
        return f"it runs as uid {facts['Uid']} and the daemon as uid {own['Uid']}: run both as the same user"
    if scope >= 3:
        return "kernel.yama.ptrace_scope is 3, which nobody can lift before the host's next start: set it to 1 for that"
    if scope == 2:
        return (
            "kernel.yama.ptrace_scope is 2, which asks for CAP_SYS_PTRACE: run `sysctl kernel.yama.ptrace_scope=1`, or"
            " give the daemon that capability (systemd: AmbientCapabilities= and CapabilityBoundingSet=CAP_SYS_PTRACE)"
        )
    if own["Seccomp"] != "0":
        return (
            "a seccomp filter on the daemon forbids ptrace or process_vm_readv: allow both (containers:"
            " --cap-add=SYS_PTRACE; systemd: SystemCallFilter=ptrace process_vm_readv)"
        )
    if scope == 1:
        return (
            "kernel.yama.ptrace_scope is 1 and the process has named another than the daemon as its tracer (a crash"
            " reporter?): restart the worker, or run `sysctl kernel.yama.ptrace_scope=0`"
        )
    return (
        "the kernel does not let the daemon trace it: the process has changed its user or capabilities, or a security"
        " module forbids it; run the daemon with CAP_SYS_PTRACE (containers: --cap-add=SYS_PTRACE)"
    )


def _yama_scope() -> int:
    """``kernel.yama.ptrace_scope``; -1 without Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return -1
