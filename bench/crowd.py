"""Clients in closed loops, one to two thousand, with the throttle on and off: who is answered, who is refused, at what cost.

``python -m bench.crowd NAME...`` measures some parts: ``sizes`` (how many clients, with connections kept and not),
``kinds`` (other agents), ``answer`` (the demonstration's), ``after`` (a small crowd after every other load), ``obedient``
(those that heed Retry-After), ``addresses`` (one or many).

Two daemons run at the same time, one with the defaults, one with the throttle off, and are measured by turns, so that
what is compared was measured within seconds. The one without a throttle gets no high-water mark and no deadline to speak
of either, since it refuses by those, too: it answers whoever asks, and shows what can be done if nobody is refused.

What is promised has the letter C and a number: C1 of a crowd that fits, C2 of one that does not, C3 of one that has
shrunk to one that fits, C4 of those that obey.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

from bench.comparing import FITS, HEADING, Bench, Comparison, Pair
from bench.crowding import Crowd, Phase, constant, is_compiled, play, wrk
from bench.curves import Axis, Line, Panel, draw
from bench.founding import QUESTIONS
from bench.measuring import RESULTS, Check, Result, load, parser, present
from bench.spec import Kind, Population
from bench.targets import Target
from bench.work import rounds_for

WORK: Final = 4.7
"""Milliseconds of Python in a call."""
SIZES: Final = (64, 2000, 10, 512, 1, 256, 32, 128, 8, 16)
"""Numbers of clients in the order in which they are measured: every crowd that fits comes after one that does not."""
SETTLED: Final = 2.0
"""Seconds after which nobody of a crowd that has shrunk is refused any more."""
PATIENCE: Final = 20.0
"""Seconds until a thousand obedient clients must have been served."""
MOST_TOLD: Final = 3


def _spin(ms: float) -> Kind:
    return Kind("spin", str(rounds_for(ms)))


def sizes(bench: Bench) -> None:
    """One to two thousand clients, with connections kept and not, and a plot."""
    work = _spin(WORK)
    found: dict[tuple[bool, int], Comparison] = {}
    with bench.pair() as pair:
        for clients in SIZES:
            for keep in (True, False):
                suffix = "" if keep else ", a connection for each request"
                both = pair.measure(Crowd([work], (clients,), keep=keep))
                label = f"{clients} client{'s' if clients > 1 else ''}"
                found[keep, clients] = Comparison(label, *both, suffix)
        _beside_wrk(bench, pair, work)
    reference = found[True, FITS].on.rate
    for keep, title in ((True, "connections kept"), (False, "a connection for each request")):
        rows: list[list[Any]] = [list(HEADING)]
        for clients in sorted(SIZES):
            each = found[keep, clients]
            if clients <= FITS:
                each.must_fit()
            else:
                each.must_hold(reference, (0.8 if clients >= 2000 else 0.9) if keep else 0.7)
            rows += each.rows(bench)
        bench.result.tables[f"calls of {WORK:g} ms of Python, {title}"] = rows
    _plot(found)


def _beside_wrk(bench: Bench, pair: Pair, work: Kind) -> None:
    """What another generator makes of the same, where it is installed."""
    ours = pair.one(False, Crowd([work], (FITS,))).rate
    other = wrk(pair.off, work, FITS, max(1, round(bench.seconds)))
    if other is not None:
        note = f"{FITS} clients, throttle off, as wrk finds it: {other[0]:.0f} answered/s; as this does just before: {ours:.0f}"
        bench.result.notes.append(note)


def _plot(found: dict[tuple[bool, int], Comparison]) -> None:
    """Answered and refused a second over the number of clients."""
    panels = []
    for what, foot, value in (
        ("answered", "", attrgetter("rate")),
        ("refused", " (at the foot: none)", attrgetter("refusals")),
    ):
        lines = [
            Line(f"{side}, {how}", [(size, value(getattr(found[keep, size], side))) for size in sorted(SIZES)])
            for keep, how in ((True, "kept"), (False, "not kept"))
            for side in ("on", "off")
        ]
        panels.append(Panel(f"{what} per second, throttle on and off{foot}", lines, what == "refused"))
    draw(RESULTS / "crowd-sizes.svg", Axis("clients", sorted(SIZES), logarithmic=True), panels)


def kinds(bench: Bench) -> None:
    """Two agents of unequal length, one that waits, and clients that pause."""
    quick, long = rounds_for(1.0), rounds_for(20.0)
    both = [Kind("spin", str(quick), label="1 ms"), Kind("spin_long", str(long), label="20 ms")]
    mostly = [Kind("spin", str(quick), 0.8, label="1 ms"), Kind("spin_long", str(long), 0.2, label="20 ms")]
    waiting = [Kind("wait", "0.06")]
    work = [_spin(WORK)]
    loads = {
        "10 clients, half 1 ms, half 20 ms": Crowd(both, (10,)),
        "32 clients, half 1 ms, half 20 ms": Crowd(both, (32,)),
        "32 clients, 4 of 5 1 ms, 1 of 5 20 ms": Crowd(mostly, (32,)),
        "64 clients, 4 of 5 1 ms, 1 of 5 20 ms": Crowd(mostly, (64,)),
        "10 clients, 60 ms of waiting": Crowd(waiting, (10,)),
        "64 clients, 60 ms of waiting": Crowd(waiting, (64,)),
        "192 clients, 60 ms of waiting": Crowd(waiting, (192,)),
        f"64 clients, {WORK:g} ms, pausing for 0.1 s": Crowd(work, (64,), pause=0.1),
    }
    rows: list[list[Any]] = [list(HEADING)]
    with bench.pair() as pair:
        for label, crowd in loads.items():
            costs = (1.0, 20.0) if len(crowd.kinds) == 2 else ()
            rows += Comparison(label, *pair.measure(crowd)).must_fit(costs).rows(bench)
    bench.result.tables["other agents, connections kept"] = rows


def answer(bench: Bench) -> None:
    """The demonstration's mixed agent, with its databases."""
    asked = [Kind("answer", json.dumps({"question": question})) for question in QUESTIONS]
    rows: list[list[Any]] = [list(HEADING)]
    with bench.pair("penstock.workers.demo", database__dsn="") as pair:
        for target in (pair.on, pair.off):
            for question in QUESTIONS * 3:
                target.call("answer", {"question": question})
        for clients in (30, 1, 20, 10):
            label = f"{clients} clients, answer"
            rows += Comparison(label, *pair.measure(Crowd(asked, (clients,)))).must_fit().rows(bench)
    bench.result.tables["the demonstration's answer (PostgreSQL and Python), connections kept"] = rows


def after(bench: Bench) -> None:
    """A crowd that fits straight after every other load: when the last of it is refused, and how it does from then on."""
    work, waiting = [_spin(WORK)], [Kind("wait", "0.06")]
    loads: list[tuple[str, int, Crowd | None]] = [
        ("64", 10, Crowd(work, (64,))),
        ("256", 10, Crowd(work, (256,))),
        ("2000", 10, Crowd(work, (2000,))),
        ("2000", 64, Crowd(work, (2000,))),
        ("512, a connection for each request", 10, Crowd(work, (512,), keep=False)),
        ("512, a connection for each request", 32, Crowd(work, (512,), keep=False)),
        ("1000 of 60 ms of waiting", 10, Crowd(waiting, (1000,))),
        ("300 that obey", 10, Crowd(work, (300,), obeys=True)),
        ("2000/s at random", 10, None),
    ]
    heading = [
        "after",
        "clients",
        "last refusal s",
        "not served % before that",
        "answered/s",
        "off",
        "not served %",
        "p99 ms",
        "verdict",
    ]
    rows: list[list[Any]] = [heading]
    with bench.pair() as pair:
        for label, clients, before in loads:
            small = Crowd(work, (clients,))
            phases = _followed(pair.on, before, small, bench.seconds)
            each = Comparison(f"{clients} after {label}", phases[-1], pair.one(False, small)).must_fit()
            last = _last_refusal(phases)
            each.checks.insert(0, Check(f"C3 seconds to the last refusal: {each.label}", last, SETTLED))
            settling = 100.0 * phases[-2].crowds[-1].unserved
            figures = [round(each.on.rate), round(each.off.rate), 100.0 * each.on.all.unserved, each.p99]
            rows.append([label, clients, last, settling, *figures, bench.promise(each.label, each.checks)])
            if label == "2000" and clients == 10:
                _plot_turns(phases)
    bench.result.tables[f"a crowd that fits, straight after another load; its first {SETTLED:g} s apart"] = rows


def _followed(target: Target, before: Crowd | None, small: Crowd, seconds: float) -> list[Phase]:
    """The load, the first seconds of the crowd after it, and the rest. None: an open loop, for which see ``load.py``."""
    if before is None:
        load(target, [Population("open", small.kinds, rate=2000.0, patience=2.0)], seconds)
        return play(target, [constant(small, 2)], [SETTLED, seconds])
    then = Crowd(small.kinds, (0, small.clients[0], small.clients[0]))
    first = Crowd(before.kinds, (before.clients[0], 0, 0), before.keep, before.pause, before.obeys)
    phases = play(target, [first, then], [seconds, SETTLED, seconds])
    # What is judged is the small crowd alone.
    for phase in phases[1:]:
        phase.crowds = phase.crowds[1:]
    return phases


def _last_refusal(phases: Sequence[Phase]) -> float:
    """Seconds from the begin of the last phase but one to the last refusal in these two; 0 if there was none."""
    late, early = phases[-1].all.last_refusal, phases[-2].all.last_refusal
    return SETTLED + late if late >= 0 else max(0.0, early)


def _plot_turns(phases: Sequence[Phase]) -> None:
    turns = [turn for phase in phases for turn in phase.turns]
    panels = [
        Panel(what, [Line("throttle on", [(at / 10, turn[place] * 10.0) for at, turn in enumerate(turns)])], place == 1)
        for place, what in enumerate(
            ("2000 clients, then 10: answered per second", "refused per second (at the foot: none)")
        )
    ]
    marks = [round(sum(phase.seconds for phase in phases[: number + 1]), 1) for number in range(len(phases))]
    draw(RESULTS / "crowd-after.svg", Axis("seconds", [0.0, *marks]), panels)


def obedient(bench: Bench) -> None:
    """A thousand clients with one request each, at once, who come back when they are told to; and crowds with such in them."""
    work = [_spin(WORK)]
    told_heading = [*(f"told {times}x" for times in range(MOST_TOLD + 1)), "more often"]
    rows: list[list[Any]] = [["1000 clients", "served", *told_heading, "refusals", "last served after s", "verdict"]]
    crowds: list[list[Any]] = [list(HEADING)]
    with bench.pair() as pair:
        for label, sources in (("one address", []), ("100 addresses", [f"127.0.0.{n}" for n in range(10, 110)])):
            crowd = Crowd(work, (1000,), obeys=True, times=1, sources=sources)
            phase = play(pair.on, [crowd], [PATIENCE])[0]
            told = phase.all.told
            most = max(told, default=0)
            checks = [
                Check(f"C4 not served: {label}", 1000 - phase.all.answers, 0),
                Check(f"C4 told to come back, times: {label}", most, MOST_TOLD),
            ]
            counts = [told[times] for times in range(MOST_TOLD + 1)]
            row = [label, phase.all.answers, *counts, told.total() - sum(counts), phase.all.refusals, phase.seconds]
            rows.append([*row, bench.promise(label, checks)])
        reference, _ = pair.measure(Crowd(work, (FITS,)))
        beside = pair.measure(Crowd(work, (32,), obeys=True), Crowd(work, (224,)))
        for label, on, off in (
            ("256 clients that obey", *pair.measure(Crowd(work, (256,), obeys=True))),
            ("32 that obey, 224 that do not", *beside),
        ):
            crowds += Comparison(label, on, off).must_hold(reference.rate, 0.9).rows(bench)
    bench.result.tables["a thousand that obey Retry-After, one request each, at once"] = rows
    bench.result.tables["crowds with clients that obey"] = crowds
    share = [crowd.answers for crowd in beside[0].crowds]
    each = share[0] / 32, share[1] / 224
    bench.result.notes.append(
        f"beside each other, who obeys is answered {each[0]:.2g} times, who does not {each[1]:.2g} times in {beside[0].seconds:g} s"
    )


def addresses(bench: Bench) -> None:
    """Clients behind one address, and from many."""
    work = [_spin(WORK)]
    many = [f"127.0.0.{number}" for number in range(10, 42)]
    rows: list[list[Any]] = [list(HEADING)]
    with bench.pair() as pair:
        alone = Comparison("64 from one address", *pair.measure(Crowd(work, (FITS,)))).must_fit()
        rows += alone.rows(bench)
        rows += Comparison("64 from 32", *pair.measure(Crowd(work, (FITS,), sources=many))).must_fit().rows(bench)
        for label, crowds in (
            ("256 from one", [Crowd(work, (256,))]),
            ("256 from 32", [Crowd(work, (256,), sources=many)]),
            ("128 from one, 128 from 32", [Crowd(work, (128,)), Crowd(work, (128,), sources=many)]),
        ):
            rows += Comparison(label, *pair.measure(*crowds)).must_hold(alone.on.rate, 0.9).rows(bench)
    bench.result.tables["clients behind one address and from several, connections kept"] = rows


PARTS: Final[dict[str, Callable[[Bench], None]]] = {
    "sizes": sizes,
    "kinds": kinds,
    "answer": answer,
    "after": after,
    "obedient": obedient,
    "addresses": addresses,
}


def measure(scale: float, names: Sequence[str] = (), seconds: float = 3.0, rounds: int = 1) -> Result:
    """``names``: of the parts; none: all. ``seconds``: of each step, before ``scale``."""
    result = Result("-".join(["crowd", *names]))
    if not is_compiled():
        result.notes.append(
            "There is no C compiler (cc), so that a generator in Python asked. It takes three times as much of the processors: "
            "crowds that are refused ask less often, and less is answered, than in figures from elsewhere."
        )
    bench = Bench(result, seconds * scale, rounds)
    for name in names or PARTS:
        begun = time.monotonic()
        PARTS[name](bench)
        print(f"crowd: {name} took {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return result


def main() -> int:
    """The command."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PARTS)} (default: all)")
    options.add_argument(
        "--seconds", type=float, default=3.0, help="that each step is measured, before --scale (default: 3)"
    )
    options.add_argument(
        "--rounds", type=int, default=1, help="how often each step is measured with the throttle on and off"
    )
    chosen = options.parse_args()
    unknown = [name for name in chosen.names if name not in PARTS]
    if unknown:
        options.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if chosen.seconds <= 0 or chosen.rounds < 1:
        options.error("--seconds must be above 0, and --rounds at least 1")
    present(lambda scale: measure(scale, chosen.names, chosen.seconds, chosen.rounds), chosen.scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
