"""Read the frames of a video one after another; with the extra `video`."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from PIL import Image

from ..utils.errors import UserError, first_line
from .decode import BrokenImageError, check_size
from .limits import MAX_PIXELS

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
"""Suffixes of videos, in lower case."""
RATE = 25
"""Frames per second of a video that does not tell."""


@dataclass(frozen=True)
class Every:
    """Which frames are read: one in so many seconds, or one in so many frames. One of the two is 0."""

    seconds: float = 0.0
    frames: int = 0


def is_video(name: str) -> bool:
    """Whether a file's name ends like a video's."""
    return name.lower().endswith(VIDEOS)


def read_every(text: str) -> Every:
    """0.5s is a frame in half a second, 10 every tenth frame; UserError for anything else."""
    try:
        every = Every(seconds=float(text[:-1])) if text.endswith("s") else Every(frames=int(text))
    except ValueError:
        every = Every()
    if not 0 < every.seconds + every.frames < float("inf"):
        raise UserError(f"--every {text}: give seconds or a number of frames, e.g. 0.5s or 10.")
    return every


class VideoReader:
    """The frames of a video that are asked for, decoded one after another.

    Attributes:
        times: Seconds of the frames that were taken from `images`; whoever uses a frame takes its time away.
        error: Why the video could not be read to its end; empty if it could.
        rate: Frames per second of those that are asked for, known with the first.
    """

    def __init__(self, name: str, every: Every, max_pixels: int = MAX_PIXELS) -> None:
        self.name, self.every, self.max_pixels = name, every, max_pixels
        self.times: deque[float] = deque()
        self.error = ""
        self.rate = Fraction(RATE)

    def images(self) -> Iterator[Image.Image]:
        """The frames as upright RGB images."""
        import av

        try:
            with av.open(self.name) as container:
                if not container.streams.video:
                    raise BrokenImageError("a file without a video")
                yield from self._images(container.streams.video[0])
        except BrokenImageError as error:
            self.error = str(error)
        except av.InvalidDataError:
            self.error = "not a video, damaged, or in a format that cannot be read"
        except (av.FFmpegError, OSError, ValueError) as error:
            self.error = getattr(error, "strerror", None) or first_line(error)

    def _images(self, stream: Any) -> Iterator[Image.Image]:
        stream.thread_type = "AUTO"  # decode on several cores
        own_rate = stream.average_rate or Fraction(RATE)
        step = Fraction(self.every.frames, 1) / own_rate
        if self.every.seconds:
            step = max(Fraction(self.every.seconds).limit_denominator(1000), 1 / own_rate)
        self.rate = 1 / step
        due = None
        for number, frame in enumerate(stream.container.decode(stream)):
            seconds = number / float(own_rate) if frame.time is None else frame.time
            due = seconds if due is None else due
            if self.every.frames:
                asked = number % self.every.frames == 0
            else:
                asked = seconds >= due - 1e-6
                due += self.every.seconds * max(0, 1 + (seconds - due + 1e-6) // self.every.seconds)
            if asked:
                image = frame.to_image()
                check_size(image, self.max_pixels)
                self.times.append(seconds)
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
