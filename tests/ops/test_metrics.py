"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import generate_latest
from twisted.trial.unittest import TestCase

from imserver.ops.metrics import Metrics


class MetricsTests(TestCase):
    """`ops.metrics.Metrics`."""

    def test_shown(self) -> None:
        """Counters, gauges, HTTP requests and what the process uses are all in the one registry."""
        metrics = Metrics("im-test", "1.0")
        metrics.counter("pushes", "Pushes.", ("status",)).labels("pushed").inc(2)
        metrics.gauge_of("waiting", "Waiting.", lambda: 7)
        metrics.observe_http("/v1/push", "POST", 202, 0.02)
        text = generate_latest(metrics.registry).decode()
        for line in (
            'im_info{server="im-test",version="1.0"} 1.0',
            'im_pushes_total{status="pushed"} 2.0',
            "im_waiting 7.0",
            'im_http_request_seconds_count{method="POST",route="/v1/push",status="202"} 1.0',
            "process_open_fds",
        ):
            self.assertIn(line, text)

    def test_registries_are_apart(self) -> None:
        """Two servers in one process do not share metrics."""
        first, second = Metrics("a", "1"), Metrics("b", "1")
        first.counter("pushes", "Pushes.").inc()
        second.counter("pushes", "Pushes.")
        self.assertIn("im_pushes_total 0.0", generate_latest(second.registry).decode())
