"""The dashboard in a real browser, with a real daemon behind it; and its files as they are served."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fix_browser import Tabs
from tests.fix_daemon import Daemon, DaemonFactory, eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page

LOADED = ("Failed to load resource",)
"""What Chromium says of every answer that is no success, whatever the page makes of it."""


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic")
    made.wait_workers(2)
    return made


def url(daemon: Daemon) -> str:
    return f"http://127.0.0.1:{daemon.port}/"


@contextmanager
def load(daemon: Daemon, clients: int = 6) -> Iterator[None]:
    """So many clients that call one agent after another."""
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            daemon.call("wait", {"seconds": 0.05})

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def shows(page: Page, script: str, *arguments: Any) -> None:
    """Wait until an expression is true in the page."""
    page.wait_for_function(script, arg=list(arguments))


def live(page: Page) -> None:
    page.wait_for_selector("body[data-link=live]")


def text(page: Page, selector: str) -> str:
    return (page.locator(selector).first.text_content() or "").replace("\xa0", " ")


def lane(page: Page, name: str) -> Any:
    return page.locator(".lanes .lane").filter(has_text=name)


def open_panel(page: Page, name: str = "default:0") -> None:
    live(page)
    page.get_by_role("button", name=name).click()
    page.wait_for_selector("#panel:not([hidden])")


# What it shows


def test_lanes_appear_and_numbers_move_under_load(daemon: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(url(daemon))
    page = tab.page
    live(page)
    assert page.locator(".lanes .lane").count() == 2
    assert text(page, "#state-word") == "Ready"
    assert text(page, "#state-text").startswith("2 of 2 workers run, ")
    assert page.locator(".cells").first.locator("i").count() == 16
    assert text(page, "#version") == daemon.status()["version"]
    with load(daemon):
        shows(page, "() => document.querySelectorAll('.cells i.full').length > 0")
        shows(page, "() => parseInt(find('tile-flight').textContent.match(/[0-9]+/)[0]) >= 4")
        if daemon.status().get("traffic"):
            shows(page, "() => parseFloat(document.querySelector('#tile-rate b').textContent) > 1")
            shows(page, "() => /ms/.test(document.querySelector('#tile-p95 b').textContent)")
            shows(page, "() => document.querySelectorAll('.plot .line').length >= 6")
    shows(page, "() => document.querySelectorAll('.cells i.full').length === 0")
    before = text(page, "#uptime")
    shows(page, "([before]) => find('uptime').textContent.replaceAll('\\u00a0', ' ') !== before", before)
    assert not re.search(r"undefined|NaN|null|Infinity|\[object", page.locator("body").inner_text())
    assert tab.blame() == []


def test_nothing_is_asked_of_anybody_but_the_daemon(daemon: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(url(daemon))
    open_panel(tab.page)
    tab.page.click("#theme")
    eventually(lambda: tab.passes(100) and any("/stack" in each for each in tab.requests), "a stack is asked for")
    assert {re.match(r"\w+:/*[^/]*/", each)[0] for each in tab.requests} == {url(daemon)}  # type: ignore[index]
    assert tab.page.context.cookies() == []
    assert tab.blame(*LOADED) == []


def test_a_killed_worker_is_shown(fresh: DaemonFactory, tabs: Tabs) -> None:
    daemon = fresh("basic")
    daemon.wait_workers(2)
    page = tabs.open(url(daemon)).page
    live(page)
    assert text(page, ".lanes .lane:nth-child(2) .lane-restarts .figure") == "0"
    os.kill(daemon.worker("default:1")["pid"], signal.SIGKILL)
    shows(page, "() => document.querySelector('.lanes .lane:nth-child(2) .lane-restarts .figure').textContent === '1'")
    eventually(lambda: daemon.worker("default:1")["state"] == "RUNNING", "it is back")
    shows(page, "() => document.querySelector('.lanes .lane:nth-child(2)').dataset.state === 'RUNNING'")
    assert daemon.worker("default:1")["reason"] in text(page, ".lanes .lane:nth-child(2) .lane-reason")
    if daemon.status().get("events"):
        shows(page, "() => /default:1/.test(find('events').textContent)")


def test_what_has_no_worker_is_not_ready(fresh: DaemonFactory, tabs: Tabs) -> None:
    daemon = fresh.prepare("broken_module", settings={"pools.default.workers": 1, "supervision.start_retries": 0})
    daemon.start()
    eventually(lambda: "listening on" in daemon.log, "it listens")
    page = tabs.open(url(daemon)).page
    page.wait_for_selector(".lanes .lane[data-kind=bad]")
    assert text(page, "#state-word") == "Not ready"
    assert text(page, ".lane-state .figure").startswith("FATAL ")
    assert text(page, ".lane-reason")


def test_a_full_queue_is_refusing(fresh: DaemonFactory, tabs: Tabs) -> None:
    settings = {
        "pools.default.workers": 1,
        "pools.default.concurrency": 1,
        "queue.high_water": 4,
        "throttle.enabled": False,
    }
    known = "throttle" in Path(__file__).parents[2].joinpath("etc/penstock.toml").read_text()
    daemon = fresh("basic", settings=settings if known else {key: settings[key] for key in list(settings)[:3]})
    page = tabs.open(url(daemon)).page
    live(page)
    calls = [daemon.begin("wait", {"seconds": 1.5})]
    eventually(lambda: daemon.in_flight() == 1, "the worker is busy")
    calls += [daemon.begin("wait", {"seconds": 0.1}) for _ in range(4)]
    shows(page, "() => /refusing/.test(find('queue').textContent)")
    assert text(page, "#state-word") == "Not ready"
    assert text(page, "#tile-waiting b") == "4"
    shows(page, "() => /taking/.test(find('queue').textContent)")
    assert {call.result().status for call in calls} == {200}


# The panel


def test_the_panel_opens_by_keyboard_and_gives_the_focus_back(daemon: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(url(daemon))
    page = tab.page
    live(page)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "lane-name":
            break
    assert page.evaluate("document.activeElement.textContent") == "default:0"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "default:1"
    for key in ("Enter", "Space"):
        page.keyboard.press(key)
        page.wait_for_selector("#panel:not([hidden])")
        assert text(page, "#panel-title") == "default:1"
        assert page.evaluate("find('panel').contains(document.activeElement)")
        assert page.get_attribute(".lane:nth-child(2) .lane-name", "aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert page.locator("#panel").is_hidden()
        assert page.evaluate("document.activeElement.textContent") == "default:1"
    assert tab.blame(*LOADED) == []


def test_the_panel_shows_the_stack_or_why_it_cannot(daemon: Daemon, tabs: Tabs) -> None:
    page = tabs.open(url(daemon)).page
    open_panel(page)
    pid = str(daemon.worker("default:0")["pid"])
    assert pid in text(page, "#panel-facts")
    shows(page, "() => find('stack').textContent !== 'reading…'")
    answer = daemon.get("/v1/workers/default:0/stack")
    if answer.status == 200:
        assert "_run_to_the_end" in text(page, "#stack")
    else:
        assert answer.json["detail"] in text(page, "#stack")
    if answer.problem == "not-found":
        assert "http.admin_bind" in text(page, "#stack")
    page.get_by_role("button", name="Hold").click()
    assert page.get_attribute("#stack-hold", "aria-pressed") == "true"


STACKS = "main (agents.py:1);work (shop/a.py:2);inner (shop/b.py:3) 30\nmain (agents.py:1);other (lib/c.py:4) 10\n"


def test_a_flame_graph_is_recorded_drawn_and_widened(daemon: Daemon, tabs: Tabs) -> None:
    tab = tabs.open()
    page = tab.page
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.append(route.request.url)
        route.fulfill(status=200, content_type="text/plain", body=STACKS)

    page.route("**/profile?*", answer)
    page.goto(url(daemon))
    open_panel(page)
    page.click("#record")
    page.wait_for_selector(".frame")
    assert asked == [f"{url(daemon)}v1/workers/default:0/profile?seconds=5&format=raw"]
    assert page.locator(".frame").all_text_contents() == [
        "all", "main (agents.py:1)", "work (shop/a.py:2)", "inner (shop/b.py:3)", "other (lib/c.py:4)",
    ]  # fmt: skip
    work, other = (page.locator(".frame").nth(place).bounding_box() for place in (2, 4))
    assert work is not None
    assert other is not None
    assert work["width"] == pytest.approx(3 * other["width"], rel=0.02)
    page.locator(".frame").nth(4).click()
    assert page.locator(".frame:not(.outer)").all_text_contents() == ["other (lib/c.py:4)"]
    assert page.evaluate("document.activeElement.textContent") == "other (lib/c.py:4)"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator(".frame:not(.outer)").count() == 4
    assert page.evaluate("document.activeElement.ariaLabel") == "main (agents.py:1): 100\xa0%, 40 samples"
    assert page.get_attribute("#flame-save", "download") == "default-0.collapsed.txt"
    assert tab.blame(*LOADED) == []


def test_a_real_recording_is_drawn_or_the_page_says_why_not(daemon: Daemon, tabs: Tabs) -> None:
    page = tabs.open(url(daemon)).page
    open_panel(page)
    known = daemon.get("/v1/workers/default:0/stack").status == 200
    busy = [daemon.begin("spin", {"seconds": 8.0}) for _ in range(4)] if known else []
    page.click("#record")
    if known:
        page.wait_for_selector(".frame")
        assert "spin" in text(page, ".flame-frames")
    else:
        shows(page, "() => /http.admin_bind/.test(find('said').textContent)")
    assert {call.result().status for call in busy} <= {200}


def test_a_restart_is_confirmed_and_done(daemon: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(url(daemon))
    page = tab.page
    before = daemon.worker("default:1")["pid"]
    open_panel(page, "default:1")
    page.click("#restart")
    assert page.evaluate("document.activeElement.id") == "confirm-no"
    page.keyboard.press("Escape")
    assert page.locator("#confirm").is_hidden()
    assert page.locator("#panel").is_visible()
    assert daemon.worker("default:1")["pid"] == before
    page.click("#restart")
    page.click("#confirm-yes")
    shows(page, "() => /has begun/.test(find('said').textContent)")
    after = eventually(lambda: (pid := daemon.worker("default:1")["pid"]) != before and pid, "another process is there")
    shows(page, "([pid]) => find('panel-facts').textContent.includes(pid)", str(after))
    daemon.wait_workers(2)
    assert tab.blame(*LOADED) == []


# When the daemon goes


def test_it_says_that_it_is_disconnected_and_comes_back_by_itself(fresh: DaemonFactory, tabs: Tabs) -> None:
    daemon = fresh("basic", settings={"pools.default.workers": 1})
    tab = tabs.open(url(daemon))
    page = tab.page
    live(page)
    daemon.wanted = daemon.port  # the page will look for it there
    daemon.kill()
    page.wait_for_selector("body[data-link=lost]")
    assert text(page, "#link").startswith("Disconnected: ")
    assert "next try in" in text(page, "#link")
    assert page.title().startswith("Disconnected")
    assert page.get_by_role("button", name="Try now").is_visible()
    daemon.start()
    daemon.wait_ready()
    live(page)
    assert text(page, "#link") == "Live"
    assert parse_span(text(page, "#uptime")) < 15
    assert tab.blame(*LOADED) == []


def parse_span(shown: str) -> int:
    found = re.fullmatch(r"([0-9]+) s", shown)
    assert found, shown
    return int(found[1])


def test_it_says_that_it_is_stale(daemon: Daemon, fresh: DaemonFactory, tabs: Tabs) -> None:
    daemon = fresh("basic", settings={"pools.default.workers": 1})
    page = tabs.open(url(daemon)).page
    live(page)
    daemon.send(signal.SIGSTOP)
    try:
        page.wait_for_selector("body[data-link=stale]")
        assert "no update for" in text(page, "#link")
    finally:
        daemon.send(signal.SIGCONT)
    live(page)


# Looks

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const paint = (colors) => {
    canvas.fillStyle = '#fff';
    canvas.fillRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest('noscript')) continue;
    const style = getComputedStyle(element);
    const grounds = [];
    for (let each = element; each; each = each.parentElement) grounds.unshift(getComputedStyle(each).backgroundColor);
    const ink = element.closest('svg') ? style.fill : style.color;
    const a = light(paint([...grounds, ink])), b = light(paint(grounds));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([contrast, element.className.baseVal ?? element.className, walker.currentNode.textContent]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_legible(daemon: Daemon, tabs: Tabs, scheme: str) -> None:
    page = tabs.open(url(daemon), color_scheme=scheme).page
    open_panel(page)
    shows(page, "() => find('stack').textContent !== 'reading…'")
    page.click("#restart")
    assert ground(page) < 90 if scheme == "dark" else ground(page) > 700
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [each for each in found if each[0] < 4.5] == []


def ground(page: Page) -> int:
    """How light the page is, from 0 to 765."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", color)[:3]))


def test_the_scheme_can_be_chosen_and_is_kept(daemon: Daemon, tabs: Tabs) -> None:
    page = tabs.open(url(daemon), color_scheme="dark").page
    dark = ground(page)
    page.click("#theme")
    assert text(page, "#theme") == "Theme: light"
    assert ground(page) > dark
    page.reload()
    live(page)
    assert text(page, "#theme") == "Theme: light"
    assert ground(page) > dark


@pytest.mark.parametrize("width", [320, 600, 1000])
def test_small_screens_need_no_scrolling_sideways(daemon: Daemon, tabs: Tabs, width: int) -> None:
    page = tabs.open(url(daemon), viewport={"width": width, "height": 700}).page
    live(page)
    wider = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    assert page.evaluate(wider) <= 0
    open_panel(page)
    assert page.evaluate(wider) <= 0
    box = page.locator("#panel").bounding_box()
    assert box is not None
    assert box["width"] <= width + 1


def test_nothing_moves_for_those_who_asked_for_that(daemon: Daemon, tabs: Tabs) -> None:
    moving = "getComputedStyle(document.querySelector('.lamp')).animationName"
    page = tabs.open(url(daemon)).page
    live(page)
    assert page.evaluate(moving) == "breathe"
    page = tabs.open(url(daemon), reduced_motion="reduce").page
    live(page)
    assert page.evaluate(moving) == "none"


# Who may see it


@pytest.fixture(scope="module")
def guarded(daemons: DaemonFactory, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    digests = {name: hashlib.sha256(f"{name}-secret".encode()).hexdigest() for name in ("call", "admin")}
    file.write_text("".join(f"{name}er:{name}:{digest}\n" for name, digest in digests.items()))
    return daemons("basic", settings={"pools.default.workers": 1, "http.tokens_file": str(file)})


def sign_in(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Open the dashboard").click()


def test_with_tokens_the_page_asks_for_one_and_keeps_it_in_the_tab(guarded: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(url(guarded))
    page = tab.page
    sign_in(page, "wrong")
    shows(page, "() => /not known/.test(document.getElementById('why').textContent)")
    sign_in(page, "admin-secret")
    live(page)
    assert page.locator(".lanes .lane").count() == 1
    assert page.evaluate("getComputedStyle(document.querySelector('.tiles')).display") == "grid"
    page.reload()
    live(page)
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0
    assert page.context.cookies() == []
    open_panel(page)
    page.click("#restart")
    page.click("#confirm-yes")
    shows(page, "() => /has begun/.test(find('said').textContent)")
    assert all("secret" not in each for each in tab.requests)
    assert tab.blame(*LOADED) == []
    other = page.context.new_page()
    other.goto(url(guarded))
    assert other.get_by_label("Token").is_visible()


def test_a_token_for_calls_shows_all_but_what_is_for_admins(guarded: Daemon, tabs: Tabs) -> None:
    page = tabs.open(url(guarded)).page
    sign_in(page, "call-secret")
    open_panel(page)
    shows(page, "() => /scope 'admin'/.test(find('stack').textContent)")
    page.click("#restart")
    page.click("#confirm-yes")
    shows(page, "() => /scope 'admin'/.test(find('said').textContent)")


def test_without_a_token_nothing_is_served_but_the_page_that_asks(guarded: Daemon) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/dashboard/app.js", "/dashboard/style.css", "/v1/events", "/dashboard/login.html", "/v1/status"):
        reply = guarded.request("GET", path, headers=browser)
        assert (reply.status, reply.problem) == (401, "unauthorized")
    assert guarded.get("/").problem == "unauthorized"
    for method in ("GET", "HEAD"):
        reply = guarded.request(method, "/", headers=browser)
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "unsafe" not in reply.headers["Content-Security-Policy"]
        assert (method == "HEAD") == (reply.body == b"")
    token = {"Authorization": "Bearer call-secret"}
    assert b"<h1>Penstock</h1>" in guarded.request("GET", "/", headers={**browser, **token}).body
    assert guarded.request("GET", "/dashboard/app.js", headers=token).status == 200


def test_with_an_admin_listener_the_panel_says_where_to_go(fresh: DaemonFactory, tabs: Tabs) -> None:
    settings = {"pools.default.workers": 1, "http.admin_bind": "127.0.0.1:0"}
    daemon = fresh("basic", settings=settings)
    page = tabs.open(url(daemon)).page
    open_panel(page)
    shows(page, "() => /admin_bind/.test(find('stack').textContent)")


# The files


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/dashboard/style.css", "text/css; charset=utf-8"),
        ("/dashboard/app.js", "text/javascript; charset=utf-8"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ],
)
def test_files_are_served_with_what_protects_them(daemon: Daemon, path: str, kind: str) -> None:
    reply = daemon.get(path)
    assert (reply.status, reply.headers["Content-Type"]) == (200, kind)
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["Cache-Control"] == "no-cache"
    tag = reply.headers["ETag"]
    for known in (tag, f'"else", W/{tag}', "*"):
        again = daemon.get(path, If_None_Match=known)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    assert daemon.get(path, If_None_Match='"else"').status == 200
    head = daemon.request("HEAD", path)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(reply.body)))
    assert daemon.request("POST", path).problem == "method-not-allowed"


def test_the_page_names_only_files_that_are_there(daemon: Daemon) -> None:
    page = daemon.get("/").body.decode()
    named = set(re.findall(r'(?:src|href)="(/[^"]*)"', page))
    assert len(named) > 5
    assert {path: daemon.get(path).status for path in named} == dict.fromkeys(named, 200)
    assert daemon.get("/dashboard/login.html").problem == "not-found"
    assert daemon.get("/dashboard/../run.py").problem == "not-found"


def test_no_file_asks_for_anything_from_anywhere_else() -> None:
    folder = Path(__file__).parents[2] / "daemon/front/dashboard"
    for file in folder.glob("*.[hcjs]*"):
        found = set(re.findall(r"https?://[^\s\"')]+", file.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, file.name
