"""What the server counts, in Prometheus' text form."""

from __future__ import annotations

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; each has its own, so that several can live in a process."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.requests = Counter("finelens_requests", "Requests by HTTP status.", ["code"], registry=self.registry)
        self.images = Counter("finelens_images", "Images by what became of them.", ["status"], registry=self.registry)
        self.seconds = Histogram("finelens_request_seconds", "Time from the first byte to the answer.", buckets=SECONDS, registry=self.registry)
        self.batches = Histogram("finelens_batch_images", "Images that the model answered at a time.", buckets=SIZES, registry=self.registry)
        self.waiting = Gauge("finelens_waiting_images", "Images that have no answer yet.", registry=self.registry)

    def text(self) -> bytes:
        """All of them."""
        from prometheus_client import generate_latest

        found: bytes = generate_latest(self.registry)
        return found
