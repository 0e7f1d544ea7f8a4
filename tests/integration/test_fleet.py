"""The fleet with real workers: they die, are replaced, stopped, reloaded and shut down; calls fare as promised."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from penstock.daemon.core.model import State
from penstock.daemon.engine.catalogue import Listing
from penstock.daemon.engine.engine import STALLED_RETRY
from penstock.daemon.fleet.rollout import ReloadFailedError
from penstock.daemon.host.cgroups import processors
from tests.fix_daemon import until
from tests.fix_fleet import Stand, configuration, descendants, play, standing
from tests.fix_processes import alive, parent
from tests.stand_in import speak_another_protocol

pytestmark = pytest.mark.usefixtures("modules")

VERSIONED = """
import os
from penstock.workers import agent

@agent
async def version(body=None):
    return {version}
"""


def versioned(directory: Path, version: int, name: str = "versioned") -> None:
    (directory / f"{name}.py").write_text(VERSIONED.replace("{version}", str(version)).replace("version(", f"{name}("))


async def versions(stand: Stand, agent: str = "versioned") -> set[Any]:
    return {await stand.call(agent) for _ in range(10)}


# Deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_is_restarted_and_its_reason_is_shown(number: signal.Signals) -> None:
    async def scenario() -> None:
        async with standing(configuration(supervision__start_seconds=0.01)) as stand:
            pids = await stand.all_run()
            await asyncio.sleep(0.02)
            os.kill(pids[0], number)
            await until(lambda: stand.view().pid not in (0, pids[0]), "there is a new process")
            assert await stand.all_run() == [stand.view().pid, pids[1]]
            view = stand.view()
            assert (view.restarts, view.generation, view.reason) == (1, 2, f"killed by {number.name}")
            assert await stand.call("echo", 1) == 1

    play(scenario())


def test_a_dead_worker_gets_no_calls_while_another_serves() -> None:
    async def scenario() -> None:
        async with standing(configuration()) as stand:
            pids = await stand.all_run()
            os.kill(pids[0], signal.SIGKILL)
            dead = next(each for each in stand.fleet._seats.alive() if each.name == "default:0")
            assert dead.worker is not None
            await until(lambda: not dead.worker.serving, "the death is noticed")  # type: ignore[union-attr]
            # Its socket takes nothing, either; that it is tried again does not bring it back.
            dead.refused([])
            retried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(2 * STALLED_RETRY, retried.set_result, None)
            await retried
            assert not dead.worker.serving
            replies = [await stand.call("wait_again", 0) for _ in range(10)]
            assert {reply["pid"] for reply in replies} == {pids[1]}

    play(scenario())


def test_workers_that_end_at_import_are_given_up_until_somebody_starts_them(modules: Path) -> None:
    (modules / "doomed.py").write_text("import os\nos._exit(3)\n")

    async def scenario() -> None:
        config = configuration("doomed", supervision__start_retries=1, agents__preload=False)
        async with standing(config) as stand:
            await until(lambda: "BACKOFF" in stand.states().values(), "one backs off")
            assert stand.engine.scheduler.is_closing("default") is False
            await until(lambda: set(stand.states().values()) == {"FATAL"}, "all are given up")
            assert stand.view().reason == "exit status 3"
            assert stand.view().restarts == 2
            assert stand.engine.scheduler.is_closing("default")
            versioned(modules, 1, "doomed")
            stand.fleet.start_worker("default:0")
            assert not stand.engine.scheduler.is_closing("default")
            await until(lambda: stand.view().state == "RUNNING", "the started one runs")
            assert stand.states() == {"default:0": "RUNNING", "default:1": "FATAL"}
            assert await stand.call("doomed") == 1

    play(scenario())


def test_an_agent_of_a_missing_pool_is_an_error_of_the_configuration() -> None:
    async def scenario() -> None:
        async with standing(configuration("lost")) as stand:
            await until(lambda: set(stand.states().values()) == {"FATAL"}, "no retry is made")
            assert stand.view().restarts == 1
            assert "nowhere" in stand.governor.configuration_errors[0]

    play(scenario())


def test_a_worker_of_another_version_is_not_given_calls() -> None:
    async def scenario() -> None:
        config = configuration(supervision__start_retries=0)
        async with standing(config, speak_another_protocol) as stand:
            await until(lambda: set(stand.states().values()) == {"FATAL"}, "they are given up")
            assert "protocol" in stand.view().reason

    play(scenario())


def test_when_the_forkserver_dies_the_workers_come_back_from_another() -> None:
    async def scenario() -> None:
        async with standing(configuration()) as stand:
            pids = await stand.all_run()
            ticket = await stand.begin("wait_again", 0.2)
            os.kill(parent(pids[0]), signal.SIGKILL)
            await until(lambda: not any(alive(pid) for pid in pids), "the workers ended with it")
            assert (await stand.end(ticket))["pid"] not in pids
            assert not set(await stand.all_run()) & set(pids)

    play(scenario())


def test_a_call_that_does_not_yield_costs_its_worker_its_life_and_others_run_on() -> None:
    async def scenario() -> None:
        config = configuration(agents__hard_timeout_grace=0.1, pools__default__workers=1)
        async with standing(config) as stand:
            [pid] = await stand.all_run()
            other = await stand.begin("wait_again", 0.8)
            late = await stand.begin("stubborn", 30, timeout=0.2)
            assert await stand.end(late) == "deadline-exceeded"
            assert (await stand.end(other))["pid"] != pid
            assert other.deaths == 0, "we killed it, so nobody is to blame"
            assert "did not yield" in stand.view().reason

    play(scenario())


def test_a_stopped_worker_with_a_late_call_is_killed() -> None:
    async def scenario() -> None:
        config = configuration(agents__hard_timeout_grace=0.1, pools__default__workers=1)
        async with standing(config) as stand:
            [pid] = await stand.all_run()
            os.kill(pid, signal.SIGSTOP)
            assert await stand.call("echo", 1, timeout=0.2) == "deadline-exceeded"
            assert await stand.call("echo", 2) == 2
            assert not alive(pid)

    play(scenario())


def test_without_descriptors_for_a_worker_it_is_started_when_there_are_some_again() -> None:
    async def scenario() -> None:
        async with standing(configuration(supervision__start_retries=0)) as stand:
            pids = await stand.all_run()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = []
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
                with pytest.raises(OSError, match="Too many open files"):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                stand.fleet.restart("default:1")
                assert "could not be started" in stand.view("default:1").reason
                os.kill(pids[0], signal.SIGKILL)
                # Its burial gives a few descriptors back.
                while stand.view().state != "BACKOFF":
                    await asyncio.sleep(0.001)
                    try:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
                    except OSError:
                        continue
                assert await stand.call("echo", 1) == 1
            finally:
                for descriptor in taken:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await stand.all_run()
            assert stand.view("default:1").pid == pids[1]

    play(scenario())


# Replacing


def test_a_restart_starts_the_new_before_it_drains_the_old() -> None:
    async def scenario() -> None:
        async with standing(configuration(pools__default__workers=1)) as stand:
            [old] = await stand.all_run()
            ticket = await stand.begin("wait", 0.5)
            assert stand.fleet.restart("default:0")
            served = set()
            while stand.view().pid == old:
                assert stand.engine.ready == ""
                served.add((await stand.call("wait_again", 0))["pid"])
            assert served == {old}
            assert (await stand.call("wait_again", 0))["pid"] == stand.view().pid
            assert alive(old), "it has a call to end"
            assert (await stand.end(ticket))["pid"] == old
            await until(lambda: not alive(old), "the old has ended")
            view = stand.view()
            assert (view.state, view.restarts, view.reason) == ("RUNNING", 1, "")
            assert not stand.fleet.restart("default:9")

    play(scenario())


def test_a_restart_that_fails_leaves_the_old_one_serving(modules: Path) -> None:
    versioned(modules, 1)

    async def scenario() -> None:
        config = configuration("versioned", agents__preload=False, pools__default__workers=1)
        async with standing(config) as stand:
            [old] = await stand.all_run()
            (modules / "versioned.py").write_text("raise RuntimeError('not today')\n")
            stand.fleet.restart("default:0")
            await until(lambda: "not today" in stand.view().reason, "the reason is shown")
            assert (stand.view().pid, stand.view().state) == (old, "RUNNING")
            assert await stand.call("versioned") == 1
            versioned(modules, 2)
            stand.fleet.restart("default:0")
            await until(lambda: stand.view().pid != old, "the next try works")
            assert await stand.call("versioned") == 2

    play(scenario())


def test_a_worker_that_dies_after_the_last_retry_is_followed_by_its_replacement() -> None:
    async def scenario() -> None:
        config = configuration(pools__default__workers=1, supervision__start_retries=0, supervision__start_seconds=1000)
        async with standing(config) as stand:
            [old] = await stand.all_run()
            stand.fleet.restart("default:0")
            os.kill(old, signal.SIGKILL)
            await until(lambda: stand.view().pid not in (0, old) and stand.view().state == "RUNNING", "it follows")
            assert stand.view().generation == 2
            assert await stand.call("echo", 1) == 1

    play(scenario())


def test_sigterm_from_outside_replaces_a_worker_without_losing_its_call() -> None:
    async def scenario() -> None:
        async with standing(configuration(pools__default__workers=1)) as stand:
            [old] = await stand.all_run()
            ticket = await stand.begin("wait", 0.5)
            os.kill(old, signal.SIGTERM)
            await until(lambda: stand.view().pid != old, "another has its seat")
            assert (await stand.end(ticket))["pid"] == old
            await until(lambda: not alive(old), "the old has ended")
            assert stand.states() == {"default:0": "RUNNING"}

    play(scenario())


# Stopping and starting one


def test_a_stop_drains_and_lasts_until_a_start() -> None:
    async def scenario() -> None:
        async with standing(configuration()) as stand:
            pids = await stand.all_run()
            tickets = [await stand.begin("wait", 0.3) for _ in range(4)]
            stand.fleet.stop_worker("default:0")
            assert stand.view().state == "STOPPING"
            assert {reply["pid"] for reply in [await stand.call("wait_again", 0) for _ in range(10)]} == {pids[1]}
            assert {(await stand.end(ticket))["pid"] for ticket in tickets} == set(pids)
            await until(lambda: stand.view().state == "STOPPED", "it is stopped")
            assert (stand.view().pid, stand.view().reason, stand.view().restarts) == (0, "", 0)
            changed = stand.fleet.changed("default:0")
            stand.fleet.start_worker("default:0")
            await asyncio.wait_for(changed, 5)
            await stand.all_run()

    play(scenario())


def test_what_the_stop_timeout_cuts_off_is_told_so() -> None:
    async def scenario() -> None:
        config = configuration(supervision__stop_timeout=0.2, pools__default__workers=1)
        async with standing(config) as stand:
            [pid] = await stand.all_run()
            ticket = await stand.begin("wait", 30)
            stand.fleet.stop_worker("default:0")
            assert await stand.end(ticket) == "unavailable"
            await until(lambda: stand.view().state == "STOPPED", "it is stopped")
            assert not alive(pid)

    play(scenario())


def test_one_that_starts_or_backs_off_can_be_stopped(modules: Path) -> None:
    (modules / "slow.py").write_text("import time\ntime.sleep(60)\n")
    (modules / "doomed.py").write_text("import os\nos._exit(3)\n")

    async def scenario(module: str, state: str) -> None:
        config = configuration(module, agents__preload=False, pools__default__workers=1)
        async with standing(config) as stand:
            await until(lambda: stand.view().state == state, f"it is {state}")
            stand.fleet.stop_worker("default:0")
            await until(lambda: stand.view().state == "STOPPED", "it is stopped")
            assert stand.view().pid == 0

    play(scenario("slow", "STARTING"))
    play(scenario("doomed", "BACKOFF"))


# Reloading


def test_a_reload_brings_new_code_to_every_worker_and_loses_no_call(modules: Path) -> None:
    versioned(modules, 1)

    async def scenario() -> None:
        before = descendants()
        config = configuration("versioned", "basic", pools__default__workers=3)
        async with standing(config) as stand:
            pids = await stand.all_run()
            tickets = [await stand.begin("wait", 0.3) for _ in range(6)]
            versioned(modules, 22)
            await stand.reload(config_again := configuration("versioned", "basic", pools__default__workers=3))
            assert config_again is not config
            assert await versions(stand) == {22}
            assert not set(await stand.all_run()) & set(pids)
            assert {(await stand.end(ticket))["pid"] for ticket in tickets} <= set(pids)
            await until(lambda: len(descendants() - before) == 4, "one server and three workers are left")

    play(scenario())


def test_a_reload_changes_workers_and_pools_and_back() -> None:
    async def scenario() -> None:
        small = {"pools__default__workers": 1}
        large = {"pools__default__workers": 3, "pools__extra__workers": 2, "pools__extra__agents": ["none*"]}
        async with standing(configuration(**small)) as stand:
            await stand.all_run()
            await stand.reload(configuration(**large))
            await stand.all_run()
            assert list(stand.states()) == ["default:0", "default:1", "default:2", "extra:0", "extra:1"]
            await stand.reload(configuration(**small))
            await until(lambda: list(stand.states()) == ["default:0"], "the others are gone")
            assert await stand.call("echo", 1) == 1
            await stand.reload(configuration(**large))
            await stand.all_run()
            assert len(stand.states()) == 5

    play(scenario())


def test_a_seat_that_comes_back_while_it_drains_is_filled_when_it_has_drained(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with standing(configuration()) as stand:
            await stand.all_run()
            done = tmp_path / "done"
            tickets = [await stand.begin("hold", str(done)) for _ in range(2)]
            await stand.reload(configuration(pools__default__workers=1))
            assert stand.states() == {"default:0": "RUNNING", "default:1": "STOPPING"}
            await stand.reload(configuration())
            assert stand.states()["default:1"] == "STOPPING"
            done.touch()
            assert len({(await stand.end(ticket))["pid"] for ticket in tickets}) == 2
            await until(lambda: stand.states() == {"default:0": "RUNNING", "default:1": "RUNNING"}, "both run")
            assert stand.view("default:1").generation == 2

    play(scenario())


@pytest.mark.parametrize("code", ["raise RuntimeError('no good')", "import os; os._exit(1)", "import sys; sys.exit(1)"])
def test_a_reload_of_broken_code_changes_nothing_and_says_why(modules: Path, code: str) -> None:
    versioned(modules, 1)

    async def scenario() -> None:
        async with standing(configuration("versioned", "basic")) as stand:
            pids = await stand.all_run()
            processes = descendants()
            (modules / "versioned.py").write_text(code + "\n")
            with pytest.raises(ReloadFailedError) as failed:
                await stand.reload(configuration("versioned", "basic", pools__default__workers=5))
            assert "'default'" in str(failed.value)
            assert await stand.all_run() == pids
            assert await versions(stand) == {1}
            await until(lambda: descendants() == processes, "what was tried is gone")
            versioned(modules, 2)
            await stand.reload(configuration("versioned", "basic"))
            assert await versions(stand) == {2}

    play(scenario())


def test_a_module_that_was_broken_before_does_not_fail_a_reload() -> None:
    async def scenario() -> None:
        async with standing(configuration("basic", "broken_module")) as stand:
            pids = await stand.all_run()
            await stand.reload(configuration("basic", "broken_module"))
            assert not set(await stand.all_run()) & set(pids)
            with pytest.raises(ReloadFailedError, match="no_such_module"):
                await stand.reload(configuration("basic", "broken_module", "no_such_module"))

    play(scenario())


def test_a_reload_brings_all_back_that_had_been_given_up_but_not_what_was_stopped(modules: Path) -> None:
    (modules / "versioned.py").write_text("raise RuntimeError('not yet')\n")

    async def scenario() -> None:
        settings = {"supervision__start_retries": 0, "pools__default__workers": 3}
        async with standing(configuration("versioned", "broken_module", **settings)) as stand:
            await until(lambda: set(stand.states().values()) == {"FATAL"}, "all are given up")
            stand.fleet.stop_worker("default:2")
            versioned(modules, 1)
            await stand.reload(configuration("versioned", "broken_module", **settings))
            wanted = {"default:0": "RUNNING", "default:1": "RUNNING", "default:2": "STOPPED"}
            await until(lambda: stand.states() == wanted, f"{wanted}, and not {stand.states()}")
            assert await versions(stand) == {1}

    play(scenario())


def test_a_reload_while_workers_still_start_ends_with_all_on_the_new(modules: Path) -> None:
    (modules / "sluggish.py").write_text("import time\ntime.sleep(60)\n")

    async def scenario() -> None:
        async with standing(configuration("sluggish", agents__preload=False)) as stand:
            await until(lambda: all(stand.pids()), "they are starting")
            stuck = stand.pids()
            versioned(modules, 7, "sluggish")
            await asyncio.wait_for(stand.reload(configuration("sluggish", agents__preload=False)), 10)
            assert not set(await stand.all_run()) & set(stuck)
            assert await versions(stand, "sluggish") == {7}
            await until(lambda: not any(alive(pid) for pid in stuck), "the stuck ones are gone")

    play(scenario())


def test_a_proof_that_dies_before_the_others_are_proven_does_not_hold_the_reload_up(modules: Path) -> None:
    (modules / "lame.py").write_text(
        "import multiprocess, time\n"
        "from penstock.workers import agent, on_start\n"
        "@agent\n"
        "async def lame(body=None):\n"
        "    return 1\n"
        "@on_start\n"
        "def start():\n"
        "    time.sleep(1.0 if multiprocess.current_process().name == 'late:0' else 0.0)\n"
    )
    settings: dict[str, Any] = {"pools__late__workers": 1, "pools__late__agents": ["none*"]}

    async def scenario() -> None:
        async with standing(configuration("lame", **settings)) as stand:
            pids = await stand.all_run()
            before = descendants()
            reload = asyncio.create_task(stand.reload(configuration("lame", **settings)))
            await until(lambda: len(descendants() - before) == 3, "a server and both proofs are there")
            made = descendants() - before
            first = min(pid for pid in made if parent(pid) in made)
            os.kill(first, signal.SIGKILL)
            await asyncio.wait_for(reload, 10)
            assert not set(await stand.all_run()) & set(pids)
            assert await versions(stand, "lame") == {1}

    play(scenario())


def test_reloads_come_one_at_a_time_and_a_cancelled_one_leaves_nothing(modules: Path) -> None:
    versioned(modules, 1)

    async def scenario() -> None:
        async with standing(configuration("versioned")) as stand:
            pids = await stand.all_run()
            processes = descendants()
            (modules / "versioned.py").write_text("import time\ntime.sleep(60)\n")
            first = asyncio.create_task(stand.fleet.reload(configuration("versioned")))
            await until(lambda: len(descendants() - processes) > 0, "it has begun")
            with pytest.raises(ReloadFailedError, match="in progress"):
                await stand.fleet.reload(configuration("versioned"))
            first.cancel()
            await asyncio.wait({first})
            assert first.cancelled()
            versioned(modules, 2)
            await stand.reload(configuration("versioned"))
            assert not set(await stand.all_run()) & set(pids)
            assert await versions(stand) == {2}

    play(scenario())


# Shutting down


def test_a_shutdown_lets_calls_end_and_leaves_no_process(modules: Path) -> None:
    (modules / "tidy.py").write_text(
        "from penstock.workers import on_stop\n"
        "@on_stop\n"
        "def stop():\n"
        f"    open({str(modules / 'stopped')!r}, 'a').write('x')\n"
    )

    async def scenario() -> None:
        async with standing(configuration("basic", "tidy")) as stand:
            await stand.all_run()
            ticket = await stand.begin("wait", 0.3)
            await stand.fleet.shutdown(10)
            assert (await stand.end(ticket))["waited"] == 0.3
            assert set(stand.states().values()) == {"STOPPED"}
            stand.fleet.restart("default:0")
            assert set(stand.states().values()) == {"STOPPED"}, "nothing starts any more"

    play(scenario())
    assert (modules / "stopped").read_text() == "xx"


def test_a_shutdown_kills_what_takes_too_long() -> None:
    async def scenario() -> None:
        async with standing(configuration()) as stand:
            pids = await stand.all_run()
            await stand.begin("stubborn", 60)
            begun = asyncio.get_running_loop().time()
            await stand.fleet.shutdown(0.2)
            assert 0.2 <= asyncio.get_running_loop().time() - begun < 3
            assert not any(alive(pid) for pid in pids)

    play(scenario())


def test_a_shutdown_does_not_wait_for_a_forkserver_that_hangs(modules: Path) -> None:
    (modules / "hanging.py").write_text("import time\ntime.sleep(60)\n")

    async def scenario() -> None:
        async with standing(configuration("hanging")) as stand:
            await until(lambda: stand.states() == {"default:0": "STARTING", "default:1": "STARTING"}, "they start")
            await asyncio.wait_for(stand.fleet.shutdown(5), 3)

    play(scenario())


def test_a_shutdown_in_the_middle_of_a_reload_ends_both(modules: Path) -> None:
    versioned(modules, 1)

    async def scenario() -> None:
        async with standing(configuration("versioned")) as stand:
            await stand.all_run()
            processes = descendants()
            reload = asyncio.create_task(stand.fleet.reload(configuration("versioned")))
            await until(lambda: len(descendants() - processes) > 0, "it has begun")
            await asyncio.wait_for(stand.fleet.shutdown(5), 8)
            with pytest.raises(ReloadFailedError):
                await reload

    play(scenario())


def test_a_waiting_call_is_sent_when_another_pool_gives_back_the_processors(tmp_path: Path) -> None:
    pools = {
        "pools__default__agents": ["mark_and_wait"],
        "pools__other__agents": ["hold"],
        "pools__other__workers": max(1, int(processors())),
    }

    async def scenario() -> None:
        async with standing(configuration(**pools)) as stand:
            await stand.all_run()
            for agent in ("mark_and_wait", "hold"):
                listing = stand.engine.catalogue.lookup(agent)
                assert isinstance(listing, Listing)
                for _ in range(100):
                    listing.agent.cost.observe(0.5, 0.5, 0.0)
            ends = [tmp_path / str(number) for number in range(max(1, int(processors())))]
            held = [await stand.begin("hold", str(end)) for end in ends]
            waiting = stand.submit("mark_and_wait", {"path": str(tmp_path / "begun"), "seconds": 0.0})
            assert waiting.state is State.WAITING, "the calls of the other pool are taken for ones that compute"
            for end in ends:
                end.touch()
            assert await stand.end(waiting) is None
            for ticket in held:
                await stand.end(ticket)

    play(scenario())
