"""The API below supervisorctl: values and faults are supervisord's, and what breaks supervisord does not break this."""

from __future__ import annotations

import sys
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.xmlrpc import Faults

from tests.fix_control import UnixConnection, connect, fault, listens, proxy, running, supervisord
from tests.fix_daemon import AGENTS, PATIENCE, Daemon, DaemonFactory, eventually

SUPERVISORD = """
[supervisord]
directory = {directory}
logfile = {directory}/main.log
pidfile = {directory}/supervisord.pid
childlogdir = {directory}
environment = CHATTY_BROKEN="{directory}/broken"
[unix_http_server]
file = {directory}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:default]
command = {python} {agents}/chatty.py
process_name = %(process_num)d
numprocs = 2
startsecs = 0
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("real")
    file = directory / "conf"
    file.write_text(SUPERVISORD.format(directory=directory, python=sys.executable, agents=AGENTS))
    process = supervisord(file)
    try:
        path = directory / "supervisor.sock"
        eventually(lambda: running(process) and listens(path), "supervisord listens")
        eventually(lambda: running(process) and "hello" in _log(proxy(path)), "its program has begun")
        yield proxy(path)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _log(api: Any) -> str:
    try:
        return str(api.supervisor.readProcessStdoutLog("default:0", 0, 0))
    except xmlrpc.client.Fault:
        return ""


@pytest.fixture(scope="module")
def daemon(daemons: DaemonFactory, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    broken = tmp_path_factory.mktemp("chatty") / "broken"
    started = daemons("chatty", environment={"CHATTY_BROKEN": str(broken)})
    eventually(
        lambda: started.runs() and "hello" in _log(proxy(started.state / "control.sock")), "the worker has begun"
    )
    started.wait_workers(2)
    return started


@pytest.fixture(scope="module")
def path(daemon: Daemon) -> Path:
    return daemon.state / "control.sock"


@pytest.fixture
def ours(path: Path) -> Any:
    return proxy(path)


def result(api: Any, method: str, arguments: tuple[Any, ...]) -> Any:
    """The value of a call, or its fault."""
    target = api
    for part in method.split("."):
        target = getattr(target, part)
    try:
        return target(*arguments)
    except xmlrpc.client.Fault as error:
        return error.faultCode, error.faultString


def test_there_are_the_same_methods_with_the_same_signatures(real: Any, ours: Any) -> None:
    names = real.system.listMethods()
    assert ours.system.listMethods() == names
    for name in names:
        assert ours.system.methodSignature(name) == real.system.methodSignature(name), name
        assert "@return" in ours.system.methodHelp(name)


SAME: list[tuple[str, tuple[Any, ...]]] = [
    ("supervisor.getAPIVersion", ()),
    ("supervisor.getVersion", ()),
    ("supervisor.getState", ()),
    ("supervisor.getState", (1,)),
    ("supervisor.nothing", ()),
    ("supervisor._find", ("default:0",)),
    ("supervisor.startProcess.x", ()),
    ("nothing.getState", ()),
    ("getState", ()),
    ("system.methodHelp", ("nothing",)),
    ("system.methodSignature", ("nothing",)),
    ("supervisor.getProcessInfo", ("default",)),
    ("supervisor.getProcessInfo", ("default:*",)),
    ("supervisor.getProcessInfo", ("",)),
    ("supervisor.getProcessInfo", ("default:2",)),
    ("supervisor.getProcessInfo", ("default:0:0",)),
    ("supervisor.getProcessInfo", ()),
    ("supervisor.startProcess", ("default:0",)),
    ("supervisor.startProcess", ("default:*",)),
    ("supervisor.startProcess", ("nothing:*",)),
    ("supervisor.startProcess", ("default:0", True, 3)),
    ("supervisor.startProcessGroup", ("default",)),
    ("supervisor.startProcessGroup", ("nothing", False)),
    ("supervisor.startAllProcesses", ()),
    ("supervisor.stopProcess", ("nothing",)),
    ("supervisor.stopProcessGroup", ("nothing",)),
    ("supervisor.signalProcess", ("default:0", "USR1")),
    ("supervisor.signalProcess", ("default:0", "nothing")),
    ("supervisor.signalProcess", ("default:0", 10)),
    ("supervisor.signalProcess", ("default:0", 999)),
    ("supervisor.signalProcess", ("default:7", "nothing")),
    ("supervisor.signalProcessGroup", ("default", "nothing")),
    ("supervisor.signalAllProcesses", ("sigusr1",)),
    ("supervisor.readProcessStdoutLog", ("default:0", 0, 5)),
    ("supervisor.readProcessStdoutLog", ("default:0", 1, 3)),
    ("supervisor.readProcessStdoutLog", ("default:0", 10_000, 3)),
    ("supervisor.readProcessStdoutLog", ("default:0", 0, -1)),
    ("supervisor.readProcessStdoutLog", ("default:0", -3, 3)),
    ("supervisor.readProcessStdoutLog", ("default", 0, 0)),
    ("supervisor.readProcessLog", ("nothing", 0, 0)),
    ("supervisor.tailProcessStdoutLog", ("nothing", 0, 0)),
    ("supervisor.readLog", (0, -1)),
    ("supervisor.readLog", (-1, 1)),
    ("supervisor.clearProcessLogs", ("default:*",)),
    ("supervisor.clearProcessLogs", ("nothing",)),
    ("supervisor.clearAllProcessLogs", ()),
    ("supervisor.tailProcessStdoutLog", ("default:0", 0, 100)),
    ("supervisor.addProcessGroup", ("default",)),
    ("supervisor.addProcessGroup", ("nothing",)),
    ("supervisor.removeProcessGroup", ("default",)),
    ("supervisor.removeProcessGroup", ("nothing",)),
    ("supervisor.reloadConfig", ()),
    ("supervisor.sendProcessStdin", ("nothing", "text")),
    ("supervisor.sendRemoteCommEvent", ("type", "data")),
    ("system.multicall", ([{"methodName": "supervisor.getAPIVersion"}, {"methodName": "nothing", "params": []}, {}],)),
    ("system.multicall", ([{"methodName": "system.multicall", "params": [[]]}],)),
    ("supervisor.stopProcess", ("default:1",)),
    ("supervisor.stopProcess", ("default:1",)),
    ("supervisor.signalProcess", ("default:1", "HUP")),
    ("supervisor.stopAllProcesses", ()),
    ("supervisor.startAllProcesses", (False,)),
]


@pytest.mark.parametrize(("method", "arguments"), SAME, ids=lambda value: str(value)[:50])
def test_a_call_gives_the_same(real: Any, ours: Any, method: str, arguments: tuple[Any, ...]) -> None:
    def plain(value: Any) -> Any:
        return (
            sorted(value, key=lambda one: str(one["name"]))
            if "Process" in method and isinstance(value, list)
            else value
        )

    wanted = result(real, method, arguments)
    if method.startswith("supervisor.tail"):
        assert result(ours, method, arguments) == wanted
    else:
        assert plain(result(ours, method, arguments)) == plain(wanted)


@pytest.mark.parametrize("method", ["getAllProcessInfo", "getAllConfigInfo"])
def test_structs_have_the_same_fields_of_the_same_types(real: Any, ours: Any, method: str) -> None:
    wanted, given = (getattr(api.supervisor, method)() for api in (real, ours))
    assert [(one["group"], one["name"]) for one in given] == [(one["group"], one["name"]) for one in wanted]
    for name, value in wanted[0].items():
        # supervisord says "auto" and "none" where nothing is set, ours has set it.
        either = {type(value), int} if name == "uid" else {type(value)}
        assert type(given[0][name]) in either, name
    assert given[0].keys() == wanted[0].keys()


# What is better here


def test_text_that_is_no_xml_can_be_read(daemon: Daemon, path: Path, ours: Any) -> None:
    eventually(lambda: "hello" in _log(ours), "its start is behind it")
    log = daemon.state / "log" / "default-0.log"
    log.write_bytes(b"\x1b[31mred\x00 \xff \xc3\xa4\xc3")
    assert ours.supervisor.readProcessStdoutLog("default:0", 0, 0) == "\u241b[31mred\u2400 \ufffd ä"
    # Bounds inside a character cost that character, not the answer.
    log.write_bytes("äöü€".encode())
    assert ours.supervisor.readProcessStdoutLog("default:0", 1, 4) == "ö"
    assert ours.supervisor.readProcessStdoutLog("default:0", -4, 0) == "€"
    assert ours.supervisor.tailProcessStdoutLog("default:0", 0, 4) == ["€", 9, True]
    assert ours.supervisor.tailProcessStdoutLog("default:0", 6, 100) == ["€", 9, False]
    assert ours.supervisor.tailProcessStdoutLog("default:0", 9, 100) == ["", 9, False]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("getProcessInfo", (5,)),
        ("readLog", ("0", 0)),
        ("stopProcess", (["default:0"],)),
        ("signalProcess", ("default:0", 1.5)),
        ("sendProcessStdin", ("default:0", 5)),
        ("getState", ({},)),
    ],
)
def test_wrong_types_are_wrong_parameters(ours: Any, method: str, arguments: tuple[Any, ...]) -> None:
    assert fault(getattr(ours.supervisor, method), *arguments) == (Faults.INCORRECT_PARAMETERS, "INCORRECT_PARAMETERS")


@pytest.mark.parametrize("number", [2**31, -(2**40), 2**64])
def test_what_is_no_integer_of_32_bits_is_a_wrong_parameter(path: Path, daemon: Daemon, number: int) -> None:
    params = b"<params><param><value><int>%d</int></value></param><param><value><int>0</int></value></param></params>"
    call = CALL.replace(b"getState", b"readLog").replace(b"</methodCall>", params % number + b"</methodCall>")
    status, answer = post(path, call)
    assert status == 200
    assert b"<string>INCORRECT_PARAMETERS</string>" in answer


def test_what_is_nested_very_deeply_is_a_bad_request(path: Path, daemon: Daemon) -> None:
    before = len(daemon.log)
    value = b"<value><array><data>" * 10_000 + b"</data></array></value>" * 10_000
    body = CALL.replace(b"</methodCall>", b"<params><param>" + value + b"</param></params></methodCall>")
    assert post(path, body) == (400, b"not XML-RPC: nested too deeply\n")
    eventually(lambda: "nested too deeply" in daemon.log[before:], "it is logged")
    assert "Traceback" not in daemon.log[before:]


@pytest.mark.parametrize("number", [0, -1, "0", "", "SIG"])
def test_what_is_no_signal_is_not_sent(ours: Any, number: Any) -> None:
    assert fault(ours.supervisor.signalProcess, "default:0", number)[0] == Faults.BAD_SIGNAL


def test_workers_have_no_standard_input(ours: Any) -> None:
    eventually(lambda: ours.supervisor.getProcessInfo("default:0")["statename"] == "RUNNING", "the worker runs")
    assert fault(ours.supervisor.sendProcessStdin, "default:0", "x") == (Faults.NO_FILE, "NO_FILE: default:0")


def post(path: Path, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = UnixConnection(path)
    try:
        connection.request("POST", "/RPC2", body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


CALL = b"<methodCall><methodName>supervisor.getState</methodName></methodCall>"


def test_a_call_without_parameters_needs_no_element_for_them(path: Path) -> None:
    assert post(path, CALL)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"<methodCall>",
        b"<methodCall><params/></methodCall>",
        b"<methodCall><methodName></methodName></methodCall>",
        b"<methodResponse><params><param><value>1</value></param></params></methodResponse>",
        CALL.replace(b"</methodCall>", b"<params><param><value><int>x</int></value></param></params></methodCall>"),
        CALL.replace(b"</methodCall>", b"<params><param><value><nothing/></value></param></params></methodCall>"),
        b"\xff\xfe" + CALL,
        b'<!DOCTYPE x [<!ENTITY a "a"><!ENTITY b "&a;&a;&a;">]>' + CALL.replace(b"getState", b"&b;") * 2,
    ],
)
def test_what_is_no_call_is_a_bad_request(path: Path, daemon: Daemon, body: bytes) -> None:
    assert post(path, body)[0] == 400


def test_a_body_that_is_too_large_is_refused_and_not_logged(path: Path, daemon: Daemon) -> None:
    before = len(daemon.log)
    assert post(path, b"<" * 2_000_000)[0] == 413
    assert post(path, b"<" * 900_000)[0] == 400
    eventually(lambda: "not XML-RPC" in daemon.log[before:], "it is logged")
    assert len(daemon.log) - before < 2000


def test_other_paths_and_methods(path: Path) -> None:
    def get(target: str, method: str = "GET") -> int:
        connection = UnixConnection(path)
        connection.request(method, target)
        status = connection.getresponse().status
        connection.close()
        return status

    assert [get("/"), get("/logtail"), get("/logtail/"), get("/logtail/nothing"), get("/logtail/default:0/other")] == [
        404
    ] * 5
    assert [get("/RPC2"), get("/mainlogtail", "POST"), get("/RPC2", "PUT")] == [405] * 3
    assert get("/logtail/default%3A0") == 200


def test_no_length_is_an_error(path: Path) -> None:
    with connect(path) as connection:
        connection.sendall(b"POST /RPC2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 411 ")


def test_old_clients_are_answered_and_closed(path: Path) -> None:
    with connect(path) as connection:
        connection.sendall(b"POST /RPC2 HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(CALL) + CALL)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert b"RUNNING" in answer
