"""What Prometheus reads of a service."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fdistill.serving.batcher import Batcher
from fdistill.serving.shelf import Shelf


class Metrics:
    """Counts of requests and images, the queue, batches and reloads, in a registry of this service."""

    def __init__(self, batcher: Batcher, shelf: Shelf) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("fdistill_requests", "Requests for images by status", ["status"], **own)
        self._images = Counter("fdistill_images", "Images answered", **own)
        buckets = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._seconds = Histogram("fdistill_request_seconds", "Seconds of answered requests", buckets=buckets, **own)
        read = {
            "fdistill_queue_images": ("Images asked for and not yet answered", lambda: batcher.reserved),
            "fdistill_queue_room": ("Images that may be asked for at once", lambda: batcher.room),
            "fdistill_batches": ("Batches made", lambda: batcher.batches),
            "fdistill_batch_images": ("Images made in batches, padding not counted", lambda: batcher.made),
            "fdistill_batch_size": ("Images of a batch, with padding", lambda: batcher.size),
            "fdistill_batch_seconds": ("Seconds of a batch, smoothed", lambda: batcher.seconds),
            "fdistill_dropped_images": ("Images not made because the client left", lambda: batcher.dropped),
            "fdistill_reloads": ("Generators replaced by what was made anew", lambda: shelf.reloads),
            "fdistill_failed_reloads": ("Generators made anew that cannot be served", lambda: len(shelf.failures)),
        }
        for name, (meaning, function) in read.items():
            Gauge(name, meaning, **own).set_function(function)

    def answered(self, n: int, seconds: float) -> None:
        """Count a request for n images that took so long."""
        self._requests.labels("200").inc()
        self._images.inc(n)
        self._seconds.observe(seconds)

    def refused(self, status: int) -> None:
        """Count a request that was refused."""
        self._requests.labels(str(status)).inc()

    def text(self) -> tuple[bytes, int, None, str]:
        """Body, status, headers and media type of the answer to a scrape."""
        return generate_latest(self._registry), 200, None, CONTENT_TYPE_LATEST
