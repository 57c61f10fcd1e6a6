"""What Prometheus reads of a service."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


class Metrics:
    """Counts of requests and images, the queue, batches and reloads, in a registry of this service."""

    def __init__(self, room: int) -> None:
        """Args:
        room: images that may be asked for and not yet be answered.
        """
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("fdistill_requests", "Requests for images by status", ["status"], **own)
        self._images = Counter("fdistill_images", "Images answered", **own)
        buckets = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._seconds = Histogram("fdistill_request_seconds", "Seconds of answered requests", buckets=buckets, **own)
        self._queue = Gauge("fdistill_queue_images", "Images asked for and not yet answered", **own)
        Gauge("fdistill_queue_room", "Images that may be asked for at once", **own).set(room)
        told = {
            "batches": ("fdistill_batches", "Batches made"),
            "made": ("fdistill_batch_images", "Images made in batches, padding not counted"),
            "size": ("fdistill_batch_size", "Images of a batch, with padding"),
            "seconds": ("fdistill_batch_seconds", "Seconds of a batch, smoothed"),
            "dropped": ("fdistill_dropped_images", "Images not made because the client left"),
            "reloads": ("fdistill_reloads", "Generators replaced by what was made anew"),
            "failures": ("fdistill_failed_reloads", "Generators made anew that cannot be served"),
        }
        self._told = {key: Gauge(name, meaning, **own) for key, (name, meaning) in told.items()}

    def answered(self, n: int, seconds: float) -> None:
        """Count a request for n images that took so long."""
        self._requests.labels("200").inc()
        self._images.inc(n)
        self._seconds.observe(seconds)

    def refused(self, status: int) -> None:
        """Count a request that was refused."""
        self._requests.labels(str(status)).inc()

    def text(self, state: dict[str, Any], queue: int) -> tuple[bytes, int, None, str]:
        """Body, status, headers and media type of the answer to a scrape.

        Args:
            state: of the worker, see `Workshop.state`.
            queue: images asked for and not yet answered.
        """
        self._queue.set(queue)
        for key, gauge in self._told.items():
            gauge.set(len(state[key]) if key == "failures" else state[key])
        return generate_latest(self._registry), 200, None, CONTENT_TYPE_LATEST
