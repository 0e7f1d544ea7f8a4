"""The stock supervisorctl does the same against Penstock as against a real supervisord.

Both have two processes that print the same. One script of commands runs against each, side by side; then every command
is a test: what it printed, to which stream, and its exit status, but for pids and times.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fix_control import Said, client_command, listens, running, supervisorctl, supervisord
from tests.fix_daemon import AGENTS, PATIENCE, DaemonFactory, eventually, line_of, rest_of

SUPERVISORD = """
[supervisord]
directory = {directory}
logfile = {directory}/main.log
pidfile = {directory}/supervisord.pid
childlogdir = {directory}
environment = CHATTY_BROKEN="{broken}"

[unix_http_server]
file = {directory}/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

# What is to fail does so before Python is even loaded, which can take longer than ``startsecs``.
PROGRAM = """
[program:{name}]
command = /bin/sh -c "test ! -e {broken} && exec {python} {agents}/chatty.py"
process_name = %(process_num)d
numprocs = {count}
startsecs = 1
startretries = 0
"""

PENSTOCK = """
[agents]
modules = ["chatty"]
[database]
dsn = "off"
[supervision]
start_seconds = 1
start_retries = 0
"""

POOL = """
[pools.{name}]
workers = {count}
concurrency = 2
agents = ["{pattern}"]
"""


@dataclass
class Peer:
    """One of the two daemons."""

    socket: Path
    broken: Path
    configure: Callable[[dict[str, int]], None]
    """Write a configuration with these groups and so many processes each."""
    runs: Callable[[], object]
    """Fails the test if the daemon has ended, and shows why."""
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def ctl(self, words: str) -> Said:
        return supervisorctl(self.socket, *words.split())

    def listens(self) -> bool:
        self.runs()
        return listens(self.socket)

    def states(self) -> dict[str, str]:
        self.runs()
        return dict(line.split()[:2] for line in self.ctl("status").out.splitlines())


# Steps that are no commands: what has to have happened before the next.


def settled(**states: str) -> Callable[[Peer], Said]:
    """Wait for states of processes, such as ``default_0="RUNNING"``."""
    wanted = {name.replace("_", ":"): state for name, state in states.items()}

    def wait(peer: Peer) -> Said:
        eventually(lambda: wanted.items() <= peer.states().items(), f"{peer.socket.parent.name}: {wanted}")
        return Said("", "", 0)

    return wait


def said(text: str, *processes: str) -> Callable[[Peer], Said]:
    """Wait until the logs of these processes have a text."""

    def everywhere(peer: Peer) -> bool:
        peer.runs()
        return all(text in peer.ctl(f"tail {name}").out for name in processes)

    def wait(peer: Peer) -> Said:
        eventually(lambda: everywhere(peer), f"{peer.socket.parent.name}: {text} in the logs")
        return Said("", "", 0)

    return wait


def configured(**groups: int) -> Callable[[Peer], Said]:
    """Change the configuration."""

    def change(peer: Peer) -> Said:
        peer.configure(groups)
        return Said("", "", 0)

    return change


def breaks(peer: Peer) -> Said:
    """From now on nothing starts."""
    peer.broken.touch()
    return Said("", "", 0)


def mended(peer: Peer) -> Said:
    peer.broken.unlink()
    return Said("", "", 0)


def following(peer: Peer) -> Said:
    """``tail -f`` while the process goes on printing."""
    words = ("tail", "-f", "default:0")
    client = subprocess.Popen(client_command(peer.socket, *words), stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    with client.stdout:
        lines = [line_of(client, "tail -f prints what there is")]
        while "usr1" not in lines[-1]:
            lines.append(line_of(client, "tail -f prints the first signal"))
        peer.ctl("signal USR1 default:0")
        lines.append(line_of(client, "tail -f prints the second signal"))
        client.send_signal(2)
        # The empty line that it means to end with does not come if the signal meets it in the wrong moment.
        rest = rest_of(client, "tail -f ends").strip()
    return Said("".join(lines) + rest, "", client.wait(PATIENCE))


def followed_to_the_end(peer: Peer) -> Said:
    """``tail -f`` until the daemon ends: then the client ends, too."""
    words = ("tail", "-f", "default:0")
    peer.running.append(subprocess.Popen(client_command(peer.socket, *words), stdout=subprocess.PIPE, text=True))
    return Said(line_of(peer.running[-1], "tail -f prints what there is"), "", 0)


def ended(peer: Peer) -> Said:
    client = peer.running.pop()
    client.communicate(timeout=PATIENCE)
    return Said("", "", client.returncode)


Step = str | Callable[[Peer], Said]

BEGIN: list[Step] = [settled(default_0="RUNNING", default_1="RUNNING"), said("hello", "default:0", "default:1")]

SCRIPTS: dict[str, list[Step]] = {
    "looking": [
        *BEGIN,
        *("status", "status default:0", "status default:*", "status default:", "status default:9 x:* default"),
        *("avail", "avail x", "pid default:9", "pid default:*", "pid x", "pid all", "pid"),
        *("tail default:0", "tail -3 default:0", "tail default:0 stderr", "tail default:0 other", "tail default:9"),
        *("tail x", "tail", "tail -x default:0", "maintail -x", "fg default:9", "fg", "fg default:0 default:1"),
        *(
            "signal USR1 default:0",
            said("usr1", "default:0"),
            "tail default:0",
            "tail -4 default:0",
            "tail default:0 stderr",
        ),
        following,
        *("clear default:0", "tail default:0", "clear default:9", "clear", "clear default:*", "clear all"),
        *(
            "signal USR9 default:0",
            "signal usr1 default:*",
            "signal SIGUSR1 all",
            "signal 10 default:1",
            "signal HUP x",
        ),
        *("signal", "signal USR1", "signal USR9 all", "nonsense", "help nonsense", "version x", "reload x"),
        *(
            "shutdown x",
            "start default:0",
            "start default",
            "start default:9",
            "start x:*",
            "start default:*",
            "start all",
        ),
        *("start", "stop x", "stop x:*", "stop", "restart x:*", "restart"),
        followed_to_the_end,
        *("shutdown", ended),
        "status",
    ],
    "stopping": [
        *BEGIN,
        *("stop default:0", "status", "status default:0", "status default:1", "pid default:0", "stop default:0"),
        *("signal HUP default:0", "signal USR1 default:*", "fg default:0", "tail default:0"),
        *("start default:0", "status", "restart default:0", "restart default:9"),
        *("stop default:1", "stop default:*", "stop all", "status", "start default:*", "restart all", "status"),
    ],
    "failing": [
        *BEGIN,
        *("stop default:0", breaks, "start default:0", settled(default_0="FATAL"), "status", "start default:0"),
        settled(default_0="FATAL"),
        *("stop default:0", "signal USR1 default:0", "restart default:0"),
        *(settled(default_0="FATAL"), mended, "start default:0", "status"),
    ],
    "configuring": [
        *BEGIN,
        *("reread", "update", "add default", "add x", "remove default", "remove x", "reread x", "update x"),
        configured(default=2, other=1),
        *("reread", "avail", "status", "update", settled(other_0="RUNNING"), "status", "update", "reread"),
        configured(default=1, other=1),
        *("reread", "update default", settled(default_0="RUNNING"), "status", "reread"),
        configured(default=1),
        *("reread", "avail", "stop other:*", "remove other", "status", "reread"),
        configured(default=1, other=1),
        *("update other", settled(other_0="RUNNING"), "stop default:0", "status", "stop all"),
        configured(default=2),
        *("update", settled(default_0="RUNNING", default_1="RUNNING"), "status"),
    ],
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory, daemons: DaemonFactory) -> Iterator[dict[str, list[Peer]]]:
    """For each script a supervisord and a Penstock."""
    processes = []
    made = {}
    try:
        for name in SCRIPTS:
            real, process = _supervisord(tmp_path_factory.mktemp("supervisord"))
            processes.append(process)
            made[name] = [real, _penstock(tmp_path_factory.mktemp("penstock"), daemons)]
        for pair in made.values():
            for peer in pair:
                eventually(peer.listens, "it listens")
        yield made
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(PATIENCE)


def _supervisord(directory: Path) -> tuple[Peer, subprocess.Popen[bytes]]:
    broken = directory / "broken"

    def configure(groups: dict[str, int]) -> None:
        text = SUPERVISORD.format(directory=directory, broken=broken)
        for name, count in groups.items():
            text += PROGRAM.format(name=name, count=count, broken=broken, python=sys.executable, agents=AGENTS)
        (directory / "conf").write_text(text)

    configure({"default": 2})
    process = supervisord(directory / "conf")
    return Peer(directory / "supervisor.sock", broken, configure, functools.partial(running, process)), process


def _penstock(directory: Path, daemons: DaemonFactory) -> Peer:
    broken, file = directory / "broken", directory / "penstock.toml"

    def configure(groups: dict[str, int]) -> None:
        text = PENSTOCK
        for name, count in groups.items():
            text += POOL.format(name=name, count=count, pattern="*" if name == "default" else "nothing")
        file.write_text(text)

    configure({"default": 2})
    daemon = daemons.prepare(environment={"PENSTOCK_CONFIG": str(file), "CHATTY_BROKEN": str(broken)})
    daemon.settings = []
    daemon.start()
    return Peer(daemon.state / "control.sock", broken, configure, daemon.runs)


@pytest.fixture(scope="module")
def played(peers: dict[str, list[Peer]]) -> dict[str, list[list[Said]]]:
    """What each of the two said to every step of every script."""

    def play(name: str, peer: Peer) -> list[Said]:
        return [peer.ctl(step) if isinstance(step, str) else step(peer) for step in SCRIPTS[name]]

    with ThreadPoolExecutor(2 * len(SCRIPTS)) as threads:
        running = {name: [threads.submit(play, name, peer) for peer in pair] for name, pair in peers.items()}
        return {name: [each.result() for each in pair] for name, pair in running.items()}


def _same_for_both(said: Said, ordered: bool) -> tuple[str, str, int]:
    """Without what has to differ: pids, times, the reason of a failed start, the path of the socket."""
    out = re.sub(r"pid \d+, uptime \S+", "pid P, uptime T", said.out)
    out = re.sub(r"(?m)^(\S+ +STOPPED +)\w{3} \d\d \d\d:\d\d [AP]M$", r"\1WHEN", out)
    out = re.sub(r"(?m)^(\S+ +(?:FATAL|BACKOFF)) .*$", r"\1 WHY", out)
    out = re.sub(r"(?m)^\d+$", "P", out)
    out = re.sub(r"unix://\S+", "SOCKET", out)
    if not ordered:
        out = "".join(sorted(out.splitlines(keepends=True)))
    return out, said.err, said.status


COMMANDS = [(name, n) for name, steps in SCRIPTS.items() for n, step in enumerate(steps) if isinstance(step, str)]


@pytest.mark.parametrize(("script", "step"), COMMANDS, ids=[f"{name} {n}: {SCRIPTS[name][n]}" for name, n in COMMANDS])
def test_a_command_does_the_same(played: dict[str, list[list[Said]]], script: str, step: int) -> None:
    words = str(SCRIPTS[script][step]).split()
    # Of several processes, whoever is done first is said first.
    ordered = words[0] not in ("start", "stop", "restart", "clear")
    real, ours = (_same_for_both(said[step], ordered) for said in played[script])
    assert ours == real


@pytest.mark.parametrize("step", [following, followed_to_the_end, ended])
def test_following_a_log_does_the_same(played: dict[str, list[list[Said]]], step: Step) -> None:
    real, ours = (said[SCRIPTS["looking"].index(step)] for said in played["looking"])
    assert ours == real
