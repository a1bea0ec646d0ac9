"""What a request may ask of the server, and how it is told that it asked too much."""

from collections.abc import Mapping
from dataclasses import dataclass

LONGEST = 100
"""A longer side of more than so many shorter ones is refused: brought to the model's size, a line of pixels is huge."""


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        max_bytes: Of a request's body.
        max_pixels: Of an image, by its header, before it is decoded.
        max_images: Of a request.
        timeout: Seconds from a request's first byte to its answer.
        requests: In hand at once, from reading to answering; with `max_bytes` this bounds the memory.
        work_pixels: Larger images are reduced to so many before a segmenter.
    """

    max_bytes: int = 20 * 10**6
    max_pixels: int = 50 * 10**6
    max_images: int = 16
    timeout: float = 30.0
    requests: int = 64
    work_pixels: int = 21 * 10**5


RETRY = {"Retry-After": "1"}
"""Headers of an answer that is worth another try, in seconds."""


class Refused(Exception):  # noqa: N818  # as an answer, not as a fault
    """A request, or an image of it, that is not answered.

    Args:
        status: Of HTTP.
        reason: A word for programs and for the metrics.
        sentence: What was wrong and what to do, for people.
        headers: Of the answer.
    """

    def __init__(self, status: int, reason: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.sentence = sentence
        self.headers = dict(headers or {})
