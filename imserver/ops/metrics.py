"""What a server counts, for `GET /metrics`: one Prometheus registry for each server, not the process-wide one.

All names begin with ``im_``, times are in seconds, sizes in bytes. Label values come from small fixed sets,
such as route templates, channels and statuses: never a uid, an address or anything else a client chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

PREFIX = "im_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets for durations: from a local round trip to the longest deadline."""


class Metrics:
    """The metrics of one server; `registry` is what `GET /metrics` shows."""

    def __init__(self, server: str, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.gauge("info", "Which server this is; always 1.", ("server", "version")).labels(server, version).set(1)
        self._requests = self.histogram(
            "http_request_seconds", "HTTP requests by route template.", ("route", "method", "status")
        )

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """Something that only grows; `name` without ``im_`` and ``_total``."""
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """Something that goes up and down, set where it changes."""
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def gauge_of(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Something that goes up and down, asked for when somebody looks; `value` must be quick."""
        self.gauge(name, text).set_function(value)

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        """Something measured, by default in seconds."""
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)

    def observe_http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one HTTP request; the `observe` of an `imserver.http.resource.Api`."""
        self._requests.labels(route, method, str(status)).observe(seconds)
