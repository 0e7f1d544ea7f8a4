"""What ``@agent(batch=…)`` allows, and how such a signature is understood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import psycopg
import pytest

from penstock.ipc.messages import Call
from penstock.workers import Context, agent
from penstock.workers.agent import AgentError, Settings, registry
from penstock.workers.batches import Members, NothingLeft, WrongResults
from penstock.workers.binding import BadBody, BindingError, bind


class Query(msgspec.Struct):
    text: str


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(batch=0), "from 1 to 1024"),
        (Settings(batch=1025), "from 1 to 1024"),
        (Settings(batch=True), "from 1 to 1024"),
        (Settings(batch=2.0), "from 1 to 1024"),  # type: ignore[arg-type]
        (Settings(batch=2, batch_wait=-0.1), "from 0 to 60"),
        (Settings(batch=2, batch_wait=float("nan")), "from 0 to 60"),
        (Settings(batch=2, batch_wait="1"), "from 0 to 60"),  # type: ignore[arg-type]
        (Settings(batch_wait=0.1), "batch=32"),
        (Settings(batch=2, stream=True), "not both"),
    ],
)
def test_settings_that_cannot_be(settings: Settings, said: str) -> None:
    assert said in settings.fault()


@pytest.mark.parametrize("settings", [Settings(batch=1), Settings(batch=1024, batch_wait=60), Settings(batch_wait=0)])
def test_settings_that_can_be(settings: Settings) -> None:
    assert settings.fault() == ""


def test_a_signature_of_lists_is_that_of_one() -> None:
    def score(bodies: list[Query]) -> list[float]:
        raise NotImplementedError

    binding = bind(score, batch=True)
    one = bind(lambda body: None, {"body": Query, "return": float})
    assert binding.batch == "bodies"
    assert binding.decode(b'{"text": "a"}') == {"bodies": Query("a")}
    assert (binding.body_schema, binding.result_schema) == (one.body_schema, one.result_schema)
    with pytest.raises(BadBody):
        binding.decode(b'{"text": 1}')
    with pytest.raises(BadBody):
        binding.decode(b"")


def test_a_bare_list_takes_any_json() -> None:
    def any_of(bodies: list, contexts: list[Context]) -> Any:  # type: ignore[type-arg]
        raise NotImplementedError

    binding = bind(any_of, batch=True)
    assert binding.decode(b'[1, {"a": null}]') == {"bodies": [1, {"a": None}]}
    assert [each.kind for each in binding.injections] == ["contexts"]
    assert binding.wants_context


def one_context(bodies: list[int], ctx: Context) -> list[int]:
    raise NotImplementedError


def maybe_one_context(bodies: list[int], ctx: Context | None) -> list[int]:
    raise NotImplementedError


def no_list(body: int) -> list[int]:
    raise NotImplementedError


def two_bodies(some: list[int], others: list[int]) -> list[int]:
    raise NotImplementedError


def nothing() -> list[int]:
    raise NotImplementedError


def generator(bodies: list[int]) -> Iterator[int]:
    yield from bodies


def other_database(bodies: list[int], db: psycopg.AsyncConnection[Any]) -> list[int]:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (one_context, r"list\[Context\]"),
        (maybe_one_context, r"list\[Context\]"),
        (no_list, r"list\[...\]"),
        (two_bodies, "some, others"),
        (nothing, "none"),
        (generator, "generator"),
        (other_database, "psycopg.Connection"),
    ],
)
def test_signatures_that_cannot_be(function: Any, said: str) -> None:
    with pytest.raises(BindingError, match=said):
        bind(function, batch=True)
    with pytest.raises(AgentError, match=said):
        agent(batch=2)(function)


def members(*bodies: bytes) -> Members:
    calls = [Call(at + 1, "a", 1.0, f"r{at}", "c", None) for at in range(len(bodies))]
    made = Members(calls, [len(body) for body in bodies], b"".join(bodies))
    assert made.next_part()
    return made


def decode(body: bytes) -> dict[str, Any]:
    if not body:
        raise BadBody("malformed-body", "nothing there")
    return {"x": body.decode()}


def test_each_body_is_cut_out_and_decoded_by_itself() -> None:
    made = members(b"one", b"", b"three")
    assert made.values("x", decode) == ["one", "three"]
    assert [each.problem for each in made.all] == [None, ("malformed-body", "nothing there"), None]
    made.take([1, 3], "a")
    assert [each.result and each.result[3] for each in made.all] == [b"1", None, b"3"]
    assert not made.next_part()


def test_without_a_good_body_nothing_is_left() -> None:
    with pytest.raises(NothingLeft):
        members(b"", b"").values("x", decode)


@pytest.mark.parametrize("results", [[1], [1, 2, 3], "ab", b"ab", {1: 1, 2: 2}, {1, 2}, None, 5, iter([1, 2])])
def test_results_that_are_none(results: Any) -> None:
    with pytest.raises(WrongResults, match="'mine'"):
        members(b"a", b"b").take(results, "mine")


@pytest.mark.parametrize("results", [[1, 2], (1, 2), range(1, 3)])
def test_results_are_any_sequence(results: Any) -> None:
    made = members(b"a", b"b")
    made.take(results, "a")
    assert [each.result and each.result[3] for each in made.all] == [b"1", b"2"]


@pytest.mark.parametrize("bad", range(13))
def test_halves_find_the_bad_one_in_few_rounds(bad: int) -> None:
    made = members(*(b"%d" % at for at in range(13)))
    runs = reports = 0
    going = True
    while going:
        runs += 1
        values = made.values("x", decode)
        if str(bad) in values:
            reports += made.fail(RuntimeError("bad"), again=True)
        else:
            made.take(values, "a")
        going = made.next_part()
    assert [each.failed for each in made.all] == [at == bad for at in range(13)]
    assert all(each.result is not None for at, each in enumerate(made.all) if at != bad)
    assert (reports, runs <= 1 + 2 * 4) == (1, True)


def test_who_has_gone_is_left_out_of_what_runs_again() -> None:
    made = members(b"a", b"b", b"c")
    assert not made.fail(RuntimeError("bad"), again=True)
    made.cancel(2, "gone")
    parts = []
    while made.next_part():
        parts.append(made.values("x", decode))
        made.take(parts[-1], "a")
    assert parts == [["a"], ["c"]]
