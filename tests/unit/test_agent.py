"""Registration: names, settings, hooks, and modules that fail half way."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.workers import AgentError, Context, agent, on_start, on_stop
from penstock.workers.agent import all_or_nothing, define, registry, start_hooks, stop_hooks


@pytest.fixture(autouse=True)
def an_empty_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is registered here is gone afterwards."""
    before = dict(registry), start_hooks[:], stop_hooks[:]
    registry.clear()
    start_hooks.clear()
    stop_hooks.clear()
    yield
    registry.clear()
    registry.update(before[0])
    start_hooks[:], stop_hooks[:] = before[1:]


def test_the_function_stays_as_it_is() -> None:
    def double(x: int) -> int:
        """Twice as much."""
        return 2 * x

    assert agent(double) is double
    found = registry["double"]
    assert (found.function, found.module, found.doc) == (double, __name__, "Twice as much.")
    assert (found.pool, found.idempotent, found.timeout, found.priority, found.max_concurrency) == (
        "",
        False,
        None,
        3,
        0,
    )


def test_settings_are_kept() -> None:
    @agent(name="twice", timeout=2, idempotent=True, pool="heavy", max_concurrency=4, priority=0)
    def double(x: int) -> int:
        return 2 * x

    found = registry["twice"]
    assert (found.pool, found.idempotent, found.timeout, found.priority, found.max_concurrency) == (
        "heavy",
        True,
        2,
        0,
        4,
    )


def test_it_can_be_used_beside_and_on_objects() -> None:
    class Service:
        def __call__(self, x: int) -> int:
            return x

        def method(self, x: int, ctx: Context) -> int:
            return x

    service = Service()
    agent(service.method)
    agent(name="object")(service)
    agent(name="partial")(functools.partial(service.method, x=3))
    assert list(registry) == ["method", "object", "partial"]
    assert registry["object"].module == __name__
    with pytest.raises(AgentError, match=r"two agents have the name 'object': in .*test_agent and functools"):
        agent(name="object")(functools.partial(service))


def sample(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "no spaces"}, "'no spaces' is no name for an agent: a letter or digit, then up to 127"),
        ({"name": "a/b"}, "'a/b' is no name"),
        ({"name": "a" * 129}, "is no name"),
        ({"name": 5}, "5 is no name"),
        ({"timeout": 0}, "agent 'sample': timeout must be seconds above 0, not 0"),
        ({"timeout": -1.0}, "timeout must be seconds above 0, not -1.0"),
        ({"timeout": "3s"}, "timeout must be seconds above 0, not '3s'"),
        ({"timeout": math.inf}, "not inf"),
        ({"timeout": math.nan}, "not nan"),
        ({"timeout": True}, "not True"),
        ({"idempotent": "yes"}, "idempotent must be True or False, not 'yes'"),
        ({"pool": 3}, "pool must be the name of a pool, not 3"),
        ({"priority": 8}, "priority must be a whole number from 0 to 7, not 8"),
        ({"priority": "high"}, "not 'high'"),
        ({"priority": 1.5}, "not 1.5"),
        ({"max_concurrency": -1}, "max_concurrency must be a whole number, 0 (no limit) or more, not -1"),
        ({"max_concurrency": "2"}, "not '2'"),
        ({"max_concurrency": 2**40}, "not 1099511627776"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentError) as caught:
        agent(**settings)(sample)
    assert words in str(caught.value)
    assert not registry


def test_a_setting_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="@agent has no setting retries; there are: name, timeout"):
        agent(retries=3)(sample)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="@agent takes settings by their names, not 'echo'"):
        agent("echo")  # type: ignore[call-overload]


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(AgentError, match="'<lambda>' is no name"):
        agent(lambda x: x)
    agent(name="double")(lambda x: 2 * x)


def test_the_same_function_may_come_again() -> None:
    agent(sample)
    agent(sample, timeout=3.0) if False else agent(timeout=3.0)(sample)
    assert registry["sample"].timeout == 3.0


def test_a_signature_that_cannot_be_served_names_the_agent() -> None:
    with pytest.raises(AgentError, match=r"agent 'unnamed': the parameter \*parts"):

        @agent
        def unnamed(*parts: int) -> None: ...


def test_hooks_take_no_parameters() -> None:
    @on_start
    def first() -> None: ...

    @on_stop
    async def last(seconds: float = 1.0, *rest: int, **more: int) -> None: ...

    assert (start_hooks, stop_hooks) == ([first], [last])
    with pytest.raises(AgentError, match=r"the hook 'wrong' has parameters \(app\), and hooks get none"):

        @on_start
        def wrong(app: Any) -> None: ...

    with pytest.raises(AgentError, match="5 is no function, so it can be no hook"):
        on_start(5)  # type: ignore[type-var]


def test_half_of_a_module_is_not_served() -> None:
    agent(sample)
    module = types.ModuleType("half")
    sys.modules["half"] = module
    module.run = lambda x: x  # type: ignore[attr-defined]
    module.run.__module__ = "half"
    with pytest.raises(RuntimeError), all_or_nothing():
        define(module.run, "half")
        on_start(lambda: None)
        raise RuntimeError("in the middle")
    assert list(registry) == ["sample"]
    assert not start_hooks
    assert "half" not in sys.modules


def test_an_object_around_a_function_has_its_name_and_words() -> None:
    class Around:
        """The decorator's words."""

        def __init__(self, function: Any) -> None:
            self.__wrapped__ = function

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.__wrapped__(*args, **kwargs)

    def double(x: int) -> int:
        """Twice as much."""
        return 2 * x

    Around.__module__ = "elsewhere"
    agent(Around(double))
    assert (registry["double"].doc, registry["double"].module) == ("Twice as much.", __name__)
