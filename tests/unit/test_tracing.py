"""When there are spans, and what they are set up by."""

from __future__ import annotations

import logging
import sys

import pytest

from penstock.ipc.spans import Spans, headers, parent
from penstock.ipc.tracing import open_spans, wanted

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "shop"}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_spans_are_on_when_the_environment_says_where_to(environment: dict[str, str], on: bool) -> None:
    assert wanted(environment) is on


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin' .* there are: .*otlp_proto_http"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml"}, "'http/xml'; there are: http/protobuf, grpc"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "'otlp_proto_grpc'"),
    ],
)
def test_an_exporter_that_there_is_not_is_named(environment: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Spans(environment)


def test_without_the_extra_the_supervisor_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "penstock.ipc.spans", None)
    caplog.set_level(logging.INFO)
    assert open_spans(ENDPOINT, "default:0") is None
    assert caplog.text == ""
    assert open_spans(ENDPOINT) is None
    assert "pip install 'penstock[otel]'" in caplog.text


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_trace_goes_on_by_its_headers(flags: str) -> None:
    spans = Spans({"OTEL_TRACES_EXPORTER": "none"})
    given = f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}"
    span = spans.tracer.start_span("inner", parent(given, "a=1,b=2"))
    passed, state = headers(span)
    assert (passed[:36], passed[-3:], state) == (given[:36], given[-3:], "a=1,b=2")
    assert passed != given
    assert span.is_recording() == (flags == "01")
