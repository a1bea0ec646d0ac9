"""Limits of a request, and the error for requests that are refused."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        max_pixels: Pixels of an image according to its header, checked before decoding.
        timeout: Seconds from a request's first byte to its response.
        requests: Concurrent requests, from reading to responding; with `max_bytes` this bounds the memory.
        work_pixels: Larger images are reduced to this number of pixels for a segmenter.
    """

    max_bytes: int = 20 * 10**6
    max_pixels: int = 50 * 10**6
    max_images: int = 16
    timeout: float = 30.0
    requests: int = 64
    work_pixels: int = 21 * 10**5


RETRY = {"Retry-After": "1"}
"""Headers of a response to a request that may be retried, in seconds."""


class Refused(Exception):  # noqa: N818  # a response rather than an error
    """A request, or an image in it, is refused.

    Args:
        reason: Code for programs and for the metrics.
        sentence: What is wrong and what to do, for people.
    """

    def __init__(self, status: int, reason: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.sentence = sentence
        self.headers = dict(headers or {})
