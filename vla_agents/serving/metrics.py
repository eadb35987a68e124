"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """Counts by label values."""

    kind = "counter"

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self._labels, self._values = tuple(labels), dict[tuple[str, ...], float]()
        self._lock = threading.Lock()
        if not labels:
            self._values[()] = 0.0

    def add(self, *values: str, by: float = 1.0) -> None:
        """One more of these label values."""
        with self._lock:
            self._values[values] = self._values.get(values, 0.0) + by

    def value(self, *values: str) -> float:
        """How many there were."""
        return self._values.get(values, 0.0)

    def lines(self, name: str) -> list[str]:
        """The samples."""
        with self._lock:
            items = sorted(self._values.items())
        return [f"{name}{_labels(self._labels, values)} {value:g}" for values, value in items]


class Gauge:
    """A value that is asked for when somebody looks."""

    kind = "gauge"

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read

    def lines(self, name: str) -> list[str]:
        """The sample."""
        return [f"{name} {self._read():g}"]


class Histogram:
    """How often values fell below bounds."""

    kind = "histogram"

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, value)] += 1
            self._sum += value

    def lines(self, name: str) -> list[str]:
        """Cumulative buckets, sum and count."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, below = [], 0
        for bound, count in zip((*(f"{b:g}" for b in self._bounds), "+Inf"), counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {total:g}", f"{name}_count {below}"]


class ServerMetrics:
    """What a policy server counts.

    Args:
        clients: Tells how many are connected.
        queued: Tells how many observations wait.
        ready: Tells whether requests are taken.
        revision: Tells which load of the checkpoint plans.
    """

    def __init__(
        self,
        clients: Callable[[], float],
        queued: Callable[[], float],
        ready: Callable[[], float],
        revision: Callable[[], float],
    ) -> None:
        self.requests = Counter(("protocol", "outcome"))
        self.refused = Counter(("reason",))
        self.reloads = Counter(("outcome",))
        self.received, self.sent = Counter(), Counter()
        self.seconds, self.inference, self.batch = Histogram(), Histogram(), Histogram(BATCHES)
        self._all: dict[str, tuple[str, Counter | Gauge | Histogram]] = {
            "vla_agents_requests_total": ("Requests answered", self.requests),
            "vla_agents_refused_total": ("Connections and messages refused", self.refused),
            "vla_agents_reloads_total": ("Reloads of the checkpoint", self.reloads),
            "vla_agents_received_bytes_total": ("Bytes of messages received", self.received),
            "vla_agents_sent_bytes_total": ("Bytes of messages sent", self.sent),
            "vla_agents_request_seconds": ("From a message received to its answer sent", self.seconds),
            "vla_agents_inference_seconds": ("In the policy, per batch", self.inference),
            "vla_agents_batch_size": ("Observations per batch", self.batch),
            "vla_agents_clients": ("Clients connected", Gauge(clients)),
            "vla_agents_queued": ("Observations waiting", Gauge(queued)),
            "vla_agents_ready": ("1 while requests are taken", Gauge(ready)),
            "vla_agents_revision": ("Which load of the checkpoint plans", Gauge(revision)),
        }

    def text(self) -> str:
        """Everything, for a scraper."""
        lines = []
        for name, (help_text, metric) in self._all.items():
            lines += [f"# HELP {name} {help_text}.", f"# TYPE {name} {metric.kind}", *metric.lines(name)]
        return "\n".join(lines) + "\n"


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = ",".join(f'{n}="{_escaped(v)}"' for n, v in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
