"""The server's metrics, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Metrics of one server, in their own registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "dmformer_requests", "Responses by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "dmformer_request_seconds",
            "Time from a request's headers to the end of its response.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.images = Counter("dmformer_images", "Images with a result.", registry=registry)
        self.rejected = Counter(
            "dmformer_rejected", "Refused requests and images by reason.", ["reason"], registry=registry
        )
        self.batch_images = Histogram(
            "dmformer_batch_images", "Images per batch.", ["work"], buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "dmformer_batch_seconds", "The model's time per batch.", ["work"], buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("dmformer_queue_images", "Images waiting for the model.", ["work"], registry=registry)
        self.in_hand = Gauge("dmformer_requests_in_hand", "Requests in progress.", registry=registry)
        ProcessCollector(registry=registry)

    def batch(self, work: str, size: int, seconds: float) -> None:
        """Count a batch of one kind of work."""
        self.batch_images.labels(work).observe(size)
        self.batch_seconds.labels(work).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
