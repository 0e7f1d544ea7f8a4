"""``/openapi.json`` and ``/docs`` of real daemons: valid, complete, true, and guarded as the routes are."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock
from urllib.parse import urlsplit

import jsonschema
import pytest
from openapi_spec_validator import validate

from penstock.daemon.engine.engine import Engine
from penstock.daemon.front import docs
from penstock.daemon.front.operations import CALL, OPERATIONS
from penstock.daemon.front.routes import Administration, Routes
from tests.fix_browser import Tabs
from tests.fix_daemon import Daemon, DaemonFactory, eventually

SECRETS = {"caller": "call", "boss": "admin"}


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory) -> Daemon:
    made = daemons("basic", settings={"pools.default.workers": 1})
    made.wait_workers(1)
    return made


@pytest.fixture(scope="module")
def guarded(daemons: DaemonFactory, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """Asks for tokens, and has its admin routes on a second listener."""
    lines = [f"{name}:{scope}:{hashlib.sha256(name.encode()).hexdigest()}" for name, scope in SECRETS.items()]
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("\n".join(lines))
    settings = {
        "http.tokens_file": str(tokens),
        "http.admin_bind": "127.0.0.1:0",
        "pools.default.workers": 1,
    }
    made = daemons("basic", settings=settings)
    eventually(lambda: made.get("/v1/agents", Authorization="Bearer caller").json["agents"], "a worker runs")
    return made


@pytest.fixture(scope="module")
def document(daemon: Daemon) -> dict[str, Any]:
    return dict(daemon.get("/openapi.json").json)


def admin(daemon: Daemon) -> Daemon:
    """The same daemon by its second listener."""
    found = Daemon(daemon.state, [], [])
    found.port = daemon.admin_port
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


def filled(path: str) -> str:
    examples = {"name": "default:0", "file": "style.css" if path.startswith("/dashboard/") else "swagger-ui.css"}
    made = re.sub(r"\{(\w+)\}", lambda found: examples[found[1]], path)
    return f"{made}?seconds=0.1" if made.endswith("/profile") else made


def fits(document: dict[str, Any], schema: Any, value: Any) -> None:
    """Fail unless the value is as the document says."""
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_it_is_valid_and_says_what_it_is_of(document: dict[str, Any], daemon: Daemon) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == daemon.status()["version"]


def test_the_demonstrations_document_is_valid(fresh: DaemonFactory) -> None:
    document = fresh("penstock.workers.demo", settings={"pools.default.workers": 1}).get("/openapi.json").json
    validate(document)
    result = document["paths"]["/v1/agents/primes"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    fits(document, result, {"count": 0, "largest": None})
    with pytest.raises(jsonschema.ValidationError):
        fits(document, result, {"count": "none"})


def test_a_stream_is_described_in_both_of_its_forms(fresh: DaemonFactory) -> None:
    daemon = fresh("streaming")
    document = daemon.get("/openapi.json").json
    validate(document)
    answers = document["paths"]["/v1/agents/count"]["post"]["responses"]["200"]["content"]
    assert set(answers) == {"application/x-ndjson", "text/event-stream"}
    assert all(described["x-item-schema"] == {"type": "integer"} for described in answers.values())


def test_each_agent_has_its_own_path(document: dict[str, Any], daemon: Daemon) -> None:
    names = {agent["name"] for agent in daemon.get("/v1/agents").json["agents"]}
    assert {"echo", "order", "raw"} <= names
    calls = {
        path.removeprefix("/v1/agents/")
        for method, path, _ in operations(document)
        if path.startswith("/v1/agents/") and method == "POST"
    }
    assert calls == names
    body = document["paths"]["/v1/agents/order"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fits(document, body, {"text": "a"})
    with pytest.raises(jsonschema.ValidationError):
        fits(document, body, {"text": 1})
    raw = document["paths"]["/v1/agents/raw"]["post"]
    assert list(raw["requestBody"]["content"]) == ["application/octet-stream", "*/*"]
    assert list(raw["responses"]["200"]["content"]) == ["application/octet-stream"]


def test_answers_and_problems_are_as_described(document: dict[str, Any], daemon: Daemon) -> None:
    for agent, body, status in (
        ("wait", {"seconds": 0}, 200),
        ("order", {}, 422),
        ("echo", b"{", 400),
        ("fail", 1, 500),
    ):
        response = document["paths"][f"/v1/agents/{agent}"]["post"]["responses"][str(status)]
        reply = daemon.call(agent, body)
        assert reply.status == status
        fits(document, response["content"][reply.headers.get_content_type()]["schema"], reply.json)
        assert set(response["headers"]) <= set(reply.headers)


def test_every_documented_path_answers_as_it_says(document: dict[str, Any], daemon: Daemon) -> None:
    # What restarts workers comes last, since the others look at them.
    for method, path, operation in sorted(operations(document), key=lambda each: each[0]):
        if (path.startswith("/v1/agents/") and method == "POST") or path == "/v1/events":
            continue  # tested elsewhere; the second never ends
        reply = daemon.request(method, filled(path))
        response = operation["responses"].get(str(reply.status))
        assert response is not None, (method, path, reply.status)
        assert reply.status != 404, path
        kind = reply.headers.get_content_type()
        assert kind in response["content"], (path, kind)
        if kind == "application/json":
            fits(document, response["content"][kind]["schema"], reply.json)
        if method == "GET":
            head = daemon.request("HEAD", filled(path))
            assert (head.status, head.body) == (reply.status, b"")


def test_every_route_that_is_served_is_described() -> None:
    async def served() -> frozenset[tuple[str, str]]:
        loop = asyncio.get_running_loop()
        return Routes(Engine(loop), cast(Administration, Mock()), Mock(), Mock()).served

    assert asyncio.run(served()) - {CALL} <= OPERATIONS.keys()


def test_it_changes_only_with_the_agents(fresh: DaemonFactory, tmp_path: Path) -> None:
    module = tmp_path / "changing.py"
    module.write_text("from penstock.workers import agent\n@agent\nasync def one(body: int) -> int:\n    return body\n")
    daemon = fresh("changing", settings={"pools.default.workers": 1}, environment={"PYTHONPATH": str(tmp_path)})
    daemon.wait_workers(1)
    first = daemon.get("/openapi.json")
    tag = first.headers["ETag"]
    again = daemon.get("/openapi.json", If_None_Match=f'"other", W/{tag}')
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
    pid = daemon.worker("default:0")["pid"]
    assert daemon.request("POST", "/v1/workers/default:0/restart").status == 202
    eventually(lambda: daemon.worker("default:0")["pid"] not in (0, pid), "it is another process")
    daemon.wait_workers(1)
    assert daemon.get("/openapi.json", If_None_Match=tag).status == 304
    module.write_text(module.read_text().replace("one", "two"))
    assert daemon.request("POST", "/v1/reload").status == 202
    eventually(lambda: "/v1/agents/two" in daemon.get("/openapi.json").json["paths"], "the new agent is there")
    changed = daemon.get("/openapi.json", If_None_Match=tag)
    assert (changed.status, changed.headers["ETag"] == tag) == (200, False)


def test_tokens_are_asked_for_and_described(guarded: Daemon) -> None:
    assert guarded.get("/openapi.json").status == 401
    shown = guarded.get("/openapi.json", Authorization="Bearer caller").json
    whole = admin(guarded).get("/openapi.json", Authorization="Bearer boss").json
    for document in (shown, whole):
        validate(document)
        assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
        for _, path, operation in operations(document):
            is_open = path in ("/healthz", "/livez", "/readyz") or path.startswith("/docs/")
            is_admin = path.startswith("/v1/workers") or path == "/v1/reload"
            scope = [] if is_open else [{"bearer": ["admin" if is_admin else "call"]}]
            assert operation.get("security", []) == scope
            assert ("401" in operation["responses"], "403" in operation["responses"]) == (not is_open, is_admin)
    assert not [path for path in shown["paths"] if path.startswith(("/v1/workers", "/v1/reload"))]
    assert "/v1/workers/{name}/restart" in whole["paths"]


# The page


@pytest.mark.parametrize("path", sorted(docs.PATHS))
def test_the_page_and_its_files_are_served_with_a_strict_policy(daemon: Daemon, path: str) -> None:
    got, head = daemon.get(path), daemon.request("HEAD", path)
    assert (got.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["Content-Length"] == str(len(got.body))
    assert "default-src 'none'; script-src 'self';" in got.headers["Content-Security-Policy"]
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert daemon.get(path, If_None_Match=got.headers["ETag"]).status == 304


def test_a_browser_without_a_token_gets_the_page_with_the_401(daemon: Daemon, guarded: Daemon) -> None:
    page = guarded.get("/docs", Accept="text/html,*/*;q=0.8")
    assert (page.status, page.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert page.body == daemon.get("/docs").body
    assert page.headers["Content-Security-Policy"] == daemon.get("/docs").headers["Content-Security-Policy"]
    assert guarded.get("/docs").problem == "unauthorized"
    assert guarded.get("/docs", Authorization="Bearer caller").body == page.body
    files = [path for path in docs.PATHS if path != docs.PAGE]
    assert [guarded.get(path).status for path in files] == [200] * len(files)


@pytest.mark.parametrize("name", ["", "nope.js", "index.html", "../docs", "%2e%2e/__init__.py", "__init__.py"])
def test_there_is_nothing_else_below_it(guarded: Daemon, name: str) -> None:
    assert guarded.get(f"/docs/{name}").problem == "not-found"


def elsewhere(requests: list[str], daemon: Daemon) -> list[str]:
    ours = f"127.0.0.1:{daemon.port}"
    return [url for url in requests if urlsplit(url).scheme not in ("data", "about") and urlsplit(url).netloc != ours]


EXECUTE = """(() => {
  const of = document.querySelector('[id$="call_AGENT"]');
  if (!of) return false;
  if (!of.querySelector('.opblock-body')) { of.querySelector('button.opblock-summary-control').click(); return false; }
  const button = of.querySelector('button.execute');
  if (!button) return false;
  button.click();
  window.clicked = Date.now();
  return true;
})()"""
# A click that came before the page had taken hold of the button is made again.
STATUS = """(() => {
  const of = document.querySelector('[id$="call_AGENT"]');
  const status = of.querySelector('.live-responses-table tbody .response-col_status')?.innerText;
  if (!status && Date.now() - window.clicked > 3000) {
    of.querySelector('button.execute')?.click();
    window.clicked = Date.now();
  }
  return status;
})()"""


def test_an_agent_is_called_from_the_page_in_a_browser(daemon: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(f"http://127.0.0.1:{daemon.port}/docs")
    tab.value_once(EXECUTE.replace("AGENT", "echo"))
    assert tab.value_once(STATUS.replace("AGENT", "echo")).startswith("200")
    assert f"http://127.0.0.1:{daemon.port}/v1/agents/echo" in tab.requests
    assert elsewhere(tab.requests, daemon) == []
    assert tab.complaints == []


def test_a_stream_is_shown_as_it_grows(fresh: DaemonFactory, tabs: Tabs, tmp_path: Path) -> None:
    go = tmp_path / "go"
    daemon = fresh("streaming", environment={"STREAM_GO": str(go)})
    tab = tabs.open(f"http://127.0.0.1:{daemon.port}/docs")
    tab.value_once("!document.getElementById('sign-in').offsetParent && document.querySelector('.opblock')")
    # As Swagger UI asks, without its buttons, which are good for nothing until it knows the operation.
    tab.page.evaluate("() => { window.whole = fetch('/v1/agents/two_steps', {method: 'POST'}).then((a) => a.text()); }")
    assert tab.value_once("document.getElementById('stream-items').textContent") == '"first"\n'
    go.touch()
    ended = "document.getElementById('stream-of').textContent.includes('has ended')"
    tab.value_once(ended)
    assert tab.value_once("document.getElementById('stream-items').textContent") == '"first"\n"second"\n'
    assert tab.page.evaluate("() => window.whole") == '"first"\n"second"\n'
    assert tab.complaints == []


def test_the_page_asks_for_a_token_and_uses_it(guarded: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(f"http://127.0.0.1:{guarded.port}/docs")
    tab.value_once("document.getElementById('sign-in')?.hidden === false")
    tab.page.fill("#token", "wrong")
    tab.page.click("#sign-in button")
    assert tab.value_once("document.getElementById('trouble').innerText") == "the token is not known"
    tab.page.fill("#token", "caller")
    tab.page.click("#sign-in button")
    tab.value_once(EXECUTE.replace("AGENT", "about"))
    assert tab.value_once(STATUS.replace("AGENT", "about")).startswith("200")
    shown = '[id$="call_about"] .live-responses-table tbody .response-col_description'
    assert '"client": "caller"' in tab.page.locator(shown).first.inner_text()
    tab.page.wait_for_selector("button.authorize", state="attached")
    assert elsewhere(tab.requests, guarded) == []


# Without Swagger UI, which is an extra


@pytest.fixture(scope="module")
def bare(daemons: DaemonFactory, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """A daemon that finds no Swagger UI, and asks for tokens."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules[{docs.BUNDLE!r}] = None\n")
    tokens = site / "tokens"
    tokens.write_text(f"caller:call:{hashlib.sha256(b'caller').hexdigest()}")
    settings = {"http.tokens_file": str(tokens), "pools.default.workers": 1}
    return daemons("basic", settings=settings, environment={"PYTHONPATH": str(site)})


def test_without_swagger_ui_its_files_say_what_to_install(bare: Daemon, daemon: Daemon) -> None:
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        reply = bare.get(f"/docs/{name}")
        assert (reply.status, reply.problem) == (404, "not-found")
        assert "pip install 'penstock[docs]'" in reply.json["detail"]
    page = bare.get("/docs", Authorization="Bearer caller")
    assert (page.status, page.body) == (200, daemon.get("/docs").body)
    validate(bare.get("/openapi.json", Authorization="Bearer caller").json)


def test_without_swagger_ui_the_page_says_what_to_install(bare: Daemon, tabs: Tabs) -> None:
    tab = tabs.open(f"http://127.0.0.1:{bare.port}/docs")
    said = tab.value_once("document.getElementById('trouble')?.innerText")
    assert said == bare.get("/docs/swagger-ui-bundle.js").json["detail"]
    assert tab.page.locator("#sign-in").is_hidden(), "it asks for no token"
    assert elsewhere(tab.requests, bare) == []
