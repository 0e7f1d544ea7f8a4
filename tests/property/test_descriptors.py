"""How the descriptors that the host allows are shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.daemon.host.descriptors import CHANGES, EACH_WORKER, FEWEST, OWN, DescriptorError, for_clients, shares

LIMITS = st.integers(0, 100_000)
WORKERS = st.integers(1, 1024)


@given(LIMITS, WORKERS)
def test_clients_get_what_the_daemon_does_not_need_or_it_is_said_how_many_would_do(limit: int, workers: int) -> None:
    needed = OWN + workers * EACH_WORKER + CHANGES
    if limit < needed + FEWEST:
        with pytest.raises(DescriptorError, match=f"is {limit}, .* {needed + FEWEST} are needed") as caught:
            for_clients(limit, workers)
        assert "\n" not in str(caught.value)
        limit = needed + FEWEST
    assert FEWEST <= for_clients(limit, workers) <= limit - needed


@given(LIMITS, WORKERS)
def test_a_higher_limit_never_means_fewer_clients(limit: int, workers: int) -> None:
    base = OWN + workers * EACH_WORKER + CHANGES + FEWEST
    assert for_clients(base + limit, workers) <= for_clients(base + limit + 1, workers)


@given(st.integers(FEWEST, 100_000), st.integers(1, 100_000), st.sampled_from([1, 2]))
def test_listeners_together_take_no_more_than_there_is(possible: int, wanted: int, listeners: int) -> None:
    found = shares(possible, wanted, listeners)
    assert len(found) == listeners
    assert sum(found) <= possible
    assert all(0 < each <= wanted for each in found)
    assert sum(found) == min(possible, wanted * listeners), "nothing is left over"
    if listeners == 2:
        assert found[1] >= min(wanted, possible // 4)


def test_with_a_limit_of_256_there_are_many_clients() -> None:
    assert for_clients(256, 4) >= 100
    assert for_clients(1024, 4) == 768
    with pytest.raises(DescriptorError):
        for_clients(256, 100)
