"""Pools: which agent runs where, by which balance; preloading; functions served from Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.fix_daemon import Daemon, DaemonFactory, eventually
from tests.fix_processes import family, gone


def test_agents_run_in_the_pool_that_they_name_or_that_matches_first(fresh: DaemonFactory) -> None:
    daemon = fresh(
        "basic",
        settings={
            "pools.default.workers": 1,
            "pools.slow.workers": 1,
            "pools.slow.agents": ["wait*"],
            "pools.default.agents": ["echo", "about", "wait"],
        },
    )
    daemon.wait_workers(2)
    agents = {each["name"]: each["pool"] for each in daemon.get("/v1/agents").json["agents"]}
    assert agents == {"echo": "default", "about": "default", "wait": "default", "wait_again": "slow"}
    slow = next(worker["pid"] for worker in daemon.workers() if worker["pool"] == "slow")
    assert daemon.call("wait_again", {"seconds": 0}).json["pid"] == slow
    assert daemon.call("spin", {"seconds": 0}).problem == "unknown-agent"


def test_round_robin_takes_turns(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"pools.default.balance": "round-robin", "pools.default.workers": 3})
    daemon.wait_workers(3)
    pids = Counter(daemon.call("about").json["pid"] for _ in range(12))
    assert sorted(pids.values()) == [4, 4, 4]


def crowd(daemon: Daemon, key: str) -> list[int]:
    """Where four calls go that are there at once."""
    return [reply.json["pid"] for reply in daemon.calls("wait", [{"seconds": 0.05}] * 4, {"Affinity-Key": key})]


def test_hash_keeps_a_key_on_its_worker(fresh: DaemonFactory) -> None:
    daemon = fresh("basic", settings={"pools.default.balance": "hash", "pools.default.workers": 3})
    daemon.wait_workers(3)
    homes = {}
    for key in map(str, range(12)):
        pids = {daemon.call("about", None, {"Affinity-Key": key}).json["pid"] for _ in range(4)}
        assert len(pids) == 1
        assert set(crowd(daemon, key)) == pids, "at once, too"
        homes[key] = pids.pop()
    assert len(set(homes.values())) > 1
    victim = daemon.worker("default:0")["pid"]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: daemon.worker("default:0")["pid"] not in (0, victim), "it was replaced")
    daemon.wait_workers(3)
    for key, home in homes.items():
        if home != victim:
            assert daemon.call("about", None, {"Affinity-Key": key}).json["pid"] == home


def test_preloaded_modules_are_imported_once_for_all(fresh: DaemonFactory, tmp_path: Path) -> None:
    (tmp_path / "preloaded.py").write_text(
        "import os\nfrom penstock.workers import agent\nLOADED_BY = os.getpid()\n"
        "@agent\nasync def loaded(body=None):\n    return [LOADED_BY, os.getpid()]\n"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    daemon = fresh("preloaded", settings={"agents.preload": True}, environment=environment)
    daemon.wait_workers(2)
    seen = [daemon.call("loaded").json for _ in range(6)]
    assert len({loaded for loaded, _ in seen}) == 1
    assert all(loaded != pid for loaded, pid in seen)


def test_a_reload_changes_the_number_of_workers_and_pools(fresh: DaemonFactory, tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("[pools.default]\nworkers = 2\n[pools.old]\nworkers = 1\n")
    daemon = fresh("basic", environment={"PENSTOCK_CONFIG": str(file)}, settings={})
    # The factory's --set for the default pool goes before the file; what changes here is the other pools.
    daemon.wait_workers(3)
    file.write_text("[pools.default]\nworkers = 2\n[pools.new]\nworkers = 2\n")
    assert daemon.request("POST", "/v1/reload").status == 202

    def names() -> set[str]:
        return {worker["name"] for worker in daemon.workers() if worker["state"] == "RUNNING"}

    eventually(lambda: names() == {"default:0", "default:1", "new:0", "new:1"}, "the pools are the new ones")
    assert daemon.call("echo", 1).json == 1


def test_a_reload_refuses_what_it_cannot_change(fresh: DaemonFactory, tmp_path: Path) -> None:
    file = tmp_path / "penstock.toml"
    file.write_text("")
    daemon = fresh("basic", environment={"PENSTOCK_CONFIG": str(file)})
    for text, reason in (
        ("[database]\nmax_connections = 7\n", "database.max_connections"),
        ("[quue]\nhigh_water = 1\n", "quue"),
        ("not toml", "not TOML"),
    ):
        file.write_text(text)
        reply = daemon.request("POST", "/v1/reload")
        assert (reply.status, reply.problem) == (409, "reload-failed")
        assert reason in reply.json["detail"]


def test_lambdas_and_closures_are_served_from_python(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from penstock.workers import serve\n"
        "factor = 3\n"
        "def times(x: int) -> int:\n    return factor * x\n"
        "def even(n: int) -> bool:\n    return n == 0 or odd(n - 1)\n"
        "def odd(n: int) -> bool:\n    return n > 0 and even(n - 1)\n"
        f"raise SystemExit(serve({{'double': lambda x: 2 * x, 'triple': times, 'even': even}}, workers=1, bind='127.0.0.1:0',\n"
        f"    settings={{'database.dsn': 'off', 'supervision.state_dir': {str(tmp_path / 'state')!r}}}))\n"
    )
    daemon = Daemon(tmp_path / "state", [], [])
    daemon.process = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PENSTOCK_CONFIG": ""}
    )
    try:
        daemon.wait_ready()
        assert daemon.call("double", 21).json == 42
        assert daemon.call("triple", {"x": 5}).json == 15
        assert daemon.call("even", 7).json is False
        assert daemon.call("triple", b'"x"').problem == "invalid-body"
        everything = family(daemon.pid)
        assert daemon.stop() == 0
        assert gone(everything)
    finally:
        daemon.kill()


def test_check_says_what_would_run(tmp_path: Path) -> None:
    def check(*settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock.daemon", "check"]
        for setting in settings:
            command += ["--set", setting]
        environment = {**os.environ, "PENSTOCK_CONFIG": ""}
        agents = Path(__file__).parent.parent / "agents"
        return subprocess.run(command, cwd=agents, env=environment, capture_output=True, text=True, timeout=60)

    fine = check("database.dsn=off", 'agents.modules=["basic"]')
    assert fine.returncode == 0, fine.stderr
    assert "echo (async, no database) from basic" in fine.stdout
    broken = check("database.dsn=off", 'agents.modules=["basic", "broken_module"]')
    assert broken.returncode == 1
    assert "broken on purpose" in broken.stdout
    assert check("database.dsn=off", 'agents.modules=["lost"]').returncode == 78
    assert check("database.dsn=host=/nowhere", 'agents.modules=["basic"]').returncode == 1
    wrong = check("queue.high_water=none")
    assert wrong.returncode == 78
    assert "queue.high_water" in wrong.stderr
    assert json.dumps(wrong.stderr).count("\\n") == 1
