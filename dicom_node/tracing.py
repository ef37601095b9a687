"""Traces by OpenTelemetry, where the settings name a collector; else its exporter is not even imported.

A message holds keys and no context, so every process derives the trace of a study from its UID: what node,
worker and deliverer do for one study is one trace. A span has a station, a study and a time, no more.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.errors import ConfigurationError
from dicom_node.settings import TracingSection

_EXPORT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Span:
    """What was done for a study; times in nanoseconds since the epoch."""

    name: str
    study_instance_uid: str
    began_ns: int
    ended_ns: int
    error: str = ""
    """Type of what was raised: its words may quote a data set."""


_tell: Callable[[Span], None] | None = None
_stop: Callable[[], None] | None = None


def start(section: TracingSection, process: str) -> None:
    """Send spans of this process to the collector from now on; does nothing without an endpoint.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    global _tell, _stop
    if not section.endpoint:
        return
    try:
        _tell, _stop = _connect(section.endpoint, process)
    except ImportError:
        raise ConfigurationError(
            "tracing.endpoint is set and OpenTelemetry is not installed: `make install EXTRAS=tracing`."
        ) from None


def stop() -> None:
    """Send what is still here, and no more."""
    global _tell, _stop  # noqa: PLW0603
    if _stop is not None:
        _stop()
    _tell = _stop = None


def span(name: str, study_instance_uid: str, *, seconds: float, error: str = "") -> None:
    """Tell of what has just ended and took so long; free of cost without a collector."""
    if _tell is not None:
        ended = time.time_ns()
        began = ended - int(seconds * 1e9)
        one = Span(
            name=name, study_instance_uid=study_instance_uid, began_ns=began, ended_ns=ended, error=error
        )
        _tell(one)


def trace_id(study_instance_uid: str) -> int:
    """128 bits that every process derives from the study."""
    return int.from_bytes(hashlib.sha256(study_instance_uid.encode()).digest()[:16], "big")


def _connect(endpoint: str, process: str) -> tuple[Callable[[Span], None], Callable[[], None]]:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.trace import (  # noqa: PLC0415
        NonRecordingSpan,
        SpanContext,
        Status,
        StatusCode,
        TraceFlags,
        set_span_in_context,
    )

    provider = TracerProvider(resource=Resource({"service.name": f"covariance-{process}"}))
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("covariance")

    def tell(one: Span) -> None:
        trace = trace_id(one.study_instance_uid)
        root = SpanContext(trace, trace & (1 << 64) - 1, is_remote=True, trace_flags=TraceFlags(1))
        made = tracer.start_span(
            one.name,
            context=set_span_in_context(NonRecordingSpan(root)),
            start_time=one.began_ns,
            attributes={"covariance.study": one.study_instance_uid},
        )
        if one.error:
            made.set_status(Status(StatusCode.ERROR, one.error))
        made.end(end_time=one.ended_ns)

    return tell, provider.shutdown
