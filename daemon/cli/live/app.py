"""The screen: lines about the whole above, and below them three tables, of workers, agents and events.

A table is brought up to date cell by cell, so that nothing flickers, and the cursor stays with the row that it is on
wherever that is sorted to. Where the terminal is low only one table is shown at a time; where it is lower still the
less important lines go.

The colours are the terminal's own sixteen, so that it looks right on any background; nothing is said by colour alone,
and ``NO_COLOR`` takes them away.

What the feed's threads bring comes as a message: that is safe from any thread, and goes nowhere once the screen has
gone.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.coordinate import Coordinate
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Sparkline, Static

from ..client import address
from ..status import span
from . import view
from .feed import Feed, Look

LINES: Final = ("traffic", "queue", "throttle", "host", "database")
HELP: Final = """\
arrows, page up, down   move in a table
tab, shift+tab          the next table, the one before
s, S                    sort by the next column, the one before
enter                   the stack of the worker under the cursor
r                       restart that worker, when it has drained
?                       this help
q, ctrl+c               quit

""" + " ".join(
    (
        "CPU is percent of one core, MEMORY is resident memory, LAG is the delay of the worker's loop, OLDEST",
        "is the age of its oldest call. FLIGHT: calls in flight, of slots. For agents, CPU and DB are means of calls.",
        "A dash means: not measured (yet). The queue's marks are the low-water and the high-water mark.",
    )
)


class Table(DataTable[Text]):
    """A table whose Enter is announced below, where it does something."""

    BINDINGS: ClassVar[list[Any]] = [Binding("enter", "select_cursor", "stack")]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only the workers have something behind them."""
        return action != "select_cursor" or self.id == "workers"


class Panel(Vertical):
    """A table with its title."""

    def __init__(self, name: str, columns: Sequence[view.Column], order: int | None) -> None:
        """``order``: the column to sort by; None: as the rows come."""
        super().__init__(id=f"of-{name}", classes="panel")
        self._called = name
        self._columns = columns
        self._order = order
        self._rows: list[view.Row] = []
        self._shown: list[view.Row] = []
        self.table = Table(id=name, cursor_type="row")

    def compose(self) -> ComposeResult:
        yield Static(self._title(), classes="title", markup=False)
        yield self.table

    def on_mount(self) -> None:
        self.table.add_columns(*(_cell(column, column.title) for column in self._columns))

    def _title(self) -> str:
        by = "" if self._order is None else f", by {self._columns[self._order].title}"
        return f"{len(self._rows)} {self._called}{by}"

    @property
    def selected(self) -> str:
        """The name of what is under the cursor; empty where there is nothing."""
        row = self.table.cursor_row
        return str(self._shown[row].get("name", "")) if 0 <= row < len(self._shown) else ""

    def sort(self, step: int) -> None:
        """Sort by another column."""
        self._order = (0 if self._order is None else self._order + step) % len(self._columns)
        self.show(self._rows)

    def show(self, rows: list[view.Row]) -> None:
        """Bring the table up to date."""
        selected = self.selected
        self._rows = rows
        self._shown = rows if self._order is None else view.ordered(rows, self._columns[self._order])
        for number, row in enumerate(self._shown):
            self._fill(number, [column.show(row) for column in self._columns])
        while self.table.row_count > len(self._shown):
            self.table.remove_row(self.table.ordered_rows[-1].key)
        self.query_one(".title", Static).update(self._title())
        names = [str(row.get("name", "")) for row in self._shown]
        if selected in names and names.index(selected) != self.table.cursor_row:
            self.table.move_cursor(row=names.index(selected))

    def _fill(self, number: int, cells: list[str]) -> None:
        if number >= self.table.row_count:
            self.table.add_row(*map(_cell, self._columns, cells))
            return
        for place, (column, cell) in enumerate(zip(self._columns, cells, strict=True)):
            at = Coordinate(number, place)
            if self.table.get_cell_at(at).plain != cell:
                self.table.update_cell_at(at, _cell(column, cell), update_width=True)


def _cell(column: view.Column, words: str) -> Text:
    """A cell, or the heading: numbers stand to the right."""
    return Text(words, justify="right" if column.falling else "left")


class Page(ModalScreen[None]):
    """Text to read, until a key ends it."""

    BINDINGS: ClassVar[list[Any]] = [Binding("escape,q,question_mark,enter", "dismiss", "back", key_display="esc")]

    def __init__(self, title: str, words: str) -> None:
        super().__init__()
        self._heading = title
        self._words = words

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box"):
            yield Static(self._heading, classes="title", markup=False)
            yield Static(self._words, id="words", markup=False)


class Stack(Page):
    """A worker's stack, and another one at each Enter."""

    BINDINGS: ClassVar[list[Any]] = [
        Binding("escape,q", "dismiss", "back", key_display="esc"),
        Binding("enter", "take", "take another"),
    ]

    class Taken(Message):
        """The daemon has answered."""

        def __init__(self, words: str) -> None:
            super().__init__()
            self.words = words

    def __init__(self, feed: Feed, worker: str) -> None:
        super().__init__(f"The stack of {worker}: enter captures it again, esc goes back", "…")
        self._feed = feed
        self._worker = worker

    def on_mount(self) -> None:
        self.action_take()

    def action_take(self) -> None:
        """Ask for the stack as it is now."""
        self._feed.of_worker("GET", self._worker, "stack", self._tell)

    def _tell(self, words: str, refused: str) -> None:
        self.post_message(self.Taken(words or refused))

    def on_stack_taken(self, taken: Taken) -> None:
        self.query_one("#words", Static).update("\n".join(map(view.plain, taken.words.splitlines())))


class Question(ModalScreen[bool]):
    """Yes or no; no, whatever else is pressed to leave."""

    BINDINGS: ClassVar[list[Any]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no", key_display="n"),
    ]

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Static(self._words, classes="title", markup=False)
            yield Static("y: yes   n: no", markup=False)

    def action_answer(self, sure: bool) -> None:
        """Tell who asked."""
        self.dismiss(sure)


class Top(App[int]):
    """``penstock top``."""

    TITLE = "penstock top"
    ENABLE_COMMAND_PALETTE = False
    VERTICAL_BREAKPOINTS = [(0, "-low"), (18, "-middle"), (36, "-high")]  # noqa: RUF012 - no ClassVar in Textual
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("tab", "panel(1)", "next table", priority=True),
        Binding("shift+tab", "panel(-1)", show=False, priority=True),
        Binding("s", "sort(1)", "sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("r", "restart", "restart"),
        Binding("question_mark", "help", "help", key_display="?"),
    ]
    CSS = """
    #headline { height: 1; text-style: bold; }
    #trouble { height: auto; text-style: reverse; display: none; }
    .line { height: 1; }
    .line > .label { width: 9; text-style: dim; }
    .line > .said { width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    #lines { height: auto; }
    #graphs { height: 2; }
    .graph { width: 1fr; height: 2; padding: 0 1 0 0; }
    .graph > Static { height: 1; text-style: dim; text-wrap: nowrap; }
    .panel { height: 1fr; display: none; }
    .panel.current { display: block; }
    .panel > .title { height: 1; text-style: bold; }
    .panel.current > .title { text-style: bold reverse; }
    .panel > Table { height: 1fr; background: ansi_default; }
    Table > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold underline; }
    Table > .datatable--cursor { background: ansi_default; color: ansi_default; text-style: none; }
    Table:focus > .datatable--cursor { text-style: reverse; }
    Screen.-high .panel { display: block; }
    Screen.-high #of-workers { height: 2fr; }
    Screen.-low #graphs, Screen.-low #throttle-line, Screen.-low #host-line, Screen.-low #database-line {
        display: none;
    }
    Page, Stack, Question { align: center middle; }
    .box { width: 90%; max-width: 130; height: auto; max-height: 90%; border: solid ansi_default; padding: 0 1; }
    .box > .title { height: auto; text-style: bold; }
    """

    class Told(Message):
        """The feed has a look."""

        def __init__(self, look: Look) -> None:
            super().__init__()
            self.look = look

    class Restarted(Message):
        """A worker is being restarted, or why not."""

        def __init__(self, worker: str, refused: str) -> None:
            super().__init__()
            self.worker = worker
            self.refused = refused

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(ansi_color=True)
        self._where = address(options).where
        self._feed = Feed(options, self._tell)
        self._panels = (
            Panel("workers", view.WORKERS, order=0),
            Panel("agents", view.AGENTS, order=0),
            Panel("events", view.EVENTS, order=None),
        )
        self._current = 0
        self._answered_at = time.monotonic()

    def compose(self) -> ComposeResult:
        yield Static(id="headline", markup=False)
        yield Static(id="trouble", markup=False)
        with Vertical(id="lines"):
            for name in LINES:
                with Horizontal(classes="line", id=f"{name}-line"):
                    yield Static(name, classes="label", markup=False)
                    yield Static(id=name, classes="said", markup=False)
        with Horizontal(id="graphs"):
            for name in ("rate", "p95"):
                with Vertical(classes="graph"):
                    yield Static(id=f"{name}-title", markup=False)
                    yield Sparkline([], id=f"{name}-graph")
        yield from self._panels
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        # The name is of what is done with the terminal's own colours; it takes light backgrounds as well.
        self.theme = "ansi-dark"
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.exit)
        self._show_current()
        self._feed.start()

    def on_unmount(self) -> None:
        self._feed.stop()

    # What the feed brings

    def _tell(self, look: Look) -> None:
        self.post_message(self.Told(look))

    def on_top_told(self, told: Told) -> None:
        if not self.is_running or not self.screen_stack:
            return  # it is being taken down, and its parts may be gone
        look = told.look
        # By way of the lowest screen: what lies above it may be help or a question.
        trouble = self.screen_stack[0].query_one("#trouble", Static)
        trouble.display = look.status is None
        if look.status is None:
            silent = time.monotonic() - self._answered_at
            trouble.update(f"No answer for {span(silent)}, retrying: {view.text(look.trouble)}")
            return
        self._answered_at = time.monotonic()
        self._show(look.status)

    def _show(self, status: dict[str, Any]) -> None:
        screen = self.screen_stack[0]
        screen.query_one("#headline", Static).update(view.headline(status, self._where))
        for name in LINES:
            screen.query_one(f"#{name}", Static).update(getattr(view, name)(status))
        for name, form, title in (("rate", view.number, "answers/s"), ("p95", view.duration, "p95")):
            values = view.series(status, name)
            most = form(max(values)) if values else view.NONE
            screen.query_one(f"#{name}-title", Static).update(f"{title}, up to {most} in {len(values)} s")
            screen.query_one(f"#{name}-graph", Sparkline).data = values
        workers, agents, events = (view.rows(status, key) for key in ("workers", "agents", "events"))
        for panel, rows in zip(self._panels, (workers, agents, events[::-1]), strict=True):
            panel.show(rows)

    # Keys

    def _show_current(self) -> None:
        for number, panel in enumerate(self._panels):
            panel.set_class(number == self._current, "current")
        self._panels[self._current].table.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Under something that is to be read or answered, the tables stay as they are."""
        return action not in ("panel", "sort", "restart", "help") or not isinstance(self.screen, ModalScreen)

    def action_panel(self, step: int) -> None:
        """Go to another table."""
        self._current = (self._current + step) % len(self._panels)
        self._show_current()

    def on_descendant_focus(self) -> None:
        """Another table may have been clicked at."""
        for number, panel in enumerate(self._panels):
            if panel.table.has_focus and number != self._current:
                self._current = number
                self._show_current()

    def action_sort(self, step: int) -> None:
        """Sort the table that the keys go to."""
        self._panels[self._current].sort(step)

    def on_data_table_row_selected(self) -> None:
        """Enter in a table."""
        if worker := self._worker():
            self.push_screen(Stack(self._feed, worker))

    def _worker(self) -> str:
        """The worker under the cursor; empty where there is none."""
        return self._panels[0].selected if self._current == 0 else ""

    def action_restart(self) -> None:
        """Restart the worker under the cursor, if that is meant."""
        worker = self._worker()

        def told(_: str, refused: str) -> None:
            self.post_message(self.Restarted(worker, refused))

        def decided(sure: bool | None) -> None:
            if sure:
                self._feed.of_worker("POST", worker, "restart", told)

        if worker:
            self.push_screen(Question(f"Restart {worker}? It drains first, and no request fails."), decided)

    def on_top_restarted(self, restarted: Restarted) -> None:
        words = restarted.refused or f"{restarted.worker} restarts when it has drained"
        self.notify(view.text(words), severity="error" if restarted.refused else "information", markup=False)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Page("Keys: esc goes back", HELP))
