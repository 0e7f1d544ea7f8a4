"""The ledger of database connections, in the situations that it was made for."""

from __future__ import annotations

from penstock.daemon.core.connections import Change, Ledger

BOTH = ("async", "sync")


def shares(ledger: Ledger, *workers: str, generation: int = 1) -> list[list[int]]:
    return [[ledger.share(worker, generation, kind) for kind in BOTH] for worker in workers]


def test_the_first_worker_gets_everything_at_once() -> None:
    ledger = Ledger(19)
    assert ledger.join("default:0", 1, ["async"]) == [Change("default:0", 1, "async", 19)]


def test_a_second_worker_gets_its_part_only_when_the_first_has_let_go() -> None:
    ledger = Ledger(10)
    ledger.join("default:0", 1, ["async"])
    assert ledger.join("default:1", 1, ["async"]) == [Change("default:0", 1, "async", 5)]
    assert ledger.released("default:0", 1, "async", 5) == [Change("default:1", 1, "async", 5)]
    assert ledger.held == ledger.granted == 10


def test_a_dead_worker_has_let_go() -> None:
    ledger = Ledger(10)
    ledger.join("default:0", 1, ["async"])
    ledger.join("default:1", 1, ["async"])
    assert ledger.leave("default:0", 1) == [Change("default:1", 1, "async", 10)]


def test_a_worker_without_database_agents_claims_nothing() -> None:
    ledger = Ledger(10)
    assert ledger.join("default:0", 1, []) == []
    assert ledger.leave("default:0", 1) == []


def test_what_is_left_over_is_given_out_too() -> None:
    ledger = Ledger(5)
    for worker in ("default:0", "default:1"):
        for change in ledger.join(worker, 1, BOTH):
            ledger.released(worker, 1, change.kind, change.share)
    for worker in ("default:0", "default:1"):
        for kind in BOTH:
            ledger.released(worker, 1, kind, ledger.share(worker, 1, kind))
    given = [share for each in shares(ledger, "default:0", "default:1") for share in each]
    assert sorted(given) == [1, 1, 1, 2]


def test_too_few_for_all_leave_no_kind_of_any_pool_without() -> None:
    workers = [f"{pool}:{index}" for pool in ("cpu", "web") for index in range(8)]
    ledger = Ledger(5)
    for worker in workers:
        ledger.join(worker, 1, BOTH)
        for each in workers:
            for kind in BOTH:
                ledger.released(each, 1, kind, ledger.share(each, 1, kind))
    given = dict(zip(workers, shares(ledger, *workers), strict=True))
    for pool in ("cpu", "web"):
        for number in range(2):
            assert sum(share[number] for worker, share in given.items() if worker.startswith(pool)) >= 1
    assert ledger.granted == 5


def test_a_replacement_takes_nothing_from_those_that_have_one_each() -> None:
    ledger = Ledger(2)
    ledger.join("default:0", 1, ["async"])
    ledger.join("default:1", 1, ["async"])
    ledger.released("default:0", 1, "async", 1)
    assert ledger.join("default:0", 2, ["async"]) == []
    assert ledger.leave("default:0", 1) == [Change("default:0", 2, "async", 1)]


def test_a_late_confirmation_of_a_smaller_share_does_not_undercut_a_larger_one() -> None:
    ledger = Ledger(10)
    ledger.join("default:0", 1, ["async"])
    ledger.join("default:1", 1, ["async"])
    ledger.leave("default:1", 1)
    assert ledger.share("default:0", 1, "async") == 5, "it owes a confirmation before it gets more"
    assert ledger.released("default:0", 1, "async", 5) == [Change("default:0", 1, "async", 10)]
    assert ledger.released("default:0", 1, "async", 5) == []
    assert ledger.held == 10


def test_a_confirmation_of_somebody_unknown_changes_nothing() -> None:
    ledger = Ledger(10)
    ledger.join("default:0", 2, ["async"])
    assert ledger.released("default:0", 1, "async", 0) == []
    assert ledger.released("default:0", 2, "sync", 0) == []
    assert ledger.held == 10


def test_a_budget_of_nothing_gives_nothing() -> None:
    ledger = Ledger(0)
    assert ledger.join("default:0", 1, BOTH) == []
    assert ledger.granted == 0
