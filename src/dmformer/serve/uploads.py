"""A request's images: its body is read piece by piece within the limits, and an image's header before its pixels."""

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

from PIL import Image
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..data.decode import BrokenImageError, decode
from ..utils.errors import first_line
from .limits import LONGEST, Limits, Refused

FIELD = "images"
"""The field of a form that images come in."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of what is read; the others are left out, since some run programs."""

LONGEST_NAME = 200


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    name: str
    content: bytes


async def read_uploads(
    content_type: str, content_length: str | None, body: AsyncIterator[bytes], limits: Limits
) -> list[Upload]:
    """The files in a request's body, a form with the field "images" or one image; no more than the limits is kept.

    Args:
        content_type: The header, which tells the form from the single image.
        content_length: The header; a body that says it is too large is refused unread.
        body: Of the request, in pieces.
        limits: What is allowed.

    Raises:
        Refused: No image, too many of them, too many bytes, another kind of body, or a form that is damaged.
    """
    if not content_type and content_length in (None, "0"):
        raise _no_image()
    kind, parameters = parse_options_header(content_type)
    is_form = kind == b"multipart/form-data" and b"boundary" in parameters
    if not is_form and not kind.startswith(b"image/"):
        raise Refused(
            415,
            "body_type",
            f"Send a form (multipart/form-data) with the field '{FIELD}', or an image with its type, such as "
            f"'Content-Type: image/jpeg'; this is '{kind.decode('latin-1')[:LONGEST_NAME]}'.",
        )
    if content_length is not None and int(content_length) > limits.max_bytes:
        raise _too_many_bytes(limits)
    if is_form:
        form = _Form(parameters[b"boundary"], limits)
        async for piece in _within(body, limits):
            form.write(piece)
        return form.finish()
    content = bytearray()
    async for piece in _within(body, limits):
        content += piece
    if not content:
        raise _no_image()
    return [Upload("image", bytes(content))]


def open_image(upload: Upload, limits: Limits, at_least: int | None = None) -> Image.Image:
    """Decode an image as 8-bit RGB (see `data.decode`), after a look at its header.

    Raises:
        Refused: No image, too many pixels, sides of very unequal length, or broken data.
    """
    try:
        image = Image.open(io.BytesIO(upload.content), formats=readable())
    except Image.UnidentifiedImageError:
        raise Refused(
            415, "not_an_image", f"{upload.name} is not an image that can be read here ({', '.join(readable())})."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # a warning where they are made errors
        raise _too_many_pixels(upload, "", limits) from None
    except Exception as error:  # decoders raise whatever they like on damaged input
        raise _broken(upload, first_line(error)) from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(upload, f": {width:,} x {height:,}", limits)
    if max(width, height) > LONGEST * max(1, min(width, height)):
        raise Refused(
            413,
            "too_long",
            f"{upload.name} is {width:,} x {height:,} pixels: one side is more than {LONGEST} times the other.",
        )
    try:
        return decode(image, at_least)
    except BrokenImageError as error:
        raise _broken(upload, first_line(error)) from None


def readable() -> list[str]:
    """The formats that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


async def _within(body: AsyncIterator[bytes], limits: Limits) -> AsyncIterator[bytes]:
    size = 0
    async for piece in body:
        size += len(piece)
        if size > limits.max_bytes:
            raise _too_many_bytes(limits)
        yield piece


class _Form:
    """The files of a multipart form, from pieces of its body."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        self.limits = limits
        self.uploads: list[Upload] = []
        self.ended = False
        self._parts = 0
        self._field, self._name, self._content = "", "", bytearray()
        self._header, self._value = bytearray(), bytearray()
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._keep_header,
                    "on_headers_finished": self._check_field,
                    "on_part_data": lambda data, start, end: self._content.extend(data[start:end]),
                    "on_part_end": self._keep,
                    "on_end": self._end,
                },
            )
        except MultipartParseError:
            raise _damaged_form() from None

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except MultipartParseError:
            raise _damaged_form() from None

    def finish(self) -> list[Upload]:
        if not self.ended:
            raise _damaged_form()
        if not self.uploads:
            raise _no_image()
        return self.uploads

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self.limits.max_images:
            raise Refused(413, "too_many_images", f"Send {self.limits.max_images} images or fewer at a time.")
        self._field, self._name, self._content = "", "", bytearray()

    def _keep_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, parameters = parse_options_header(self._value.decode("latin-1"))
            self._field = parameters.get(b"name", b"").decode("utf-8", "replace")
            self._name = parameters.get(b"filename", b"").decode("utf-8", "replace")[:LONGEST_NAME]
        self._header, self._value = bytearray(), bytearray()

    def _check_field(self) -> None:
        if self._field != FIELD:
            told = self._field[:LONGEST_NAME]
            raise Refused(400, "unknown_field", f"The form has a field '{told}': send images as '{FIELD}' alone.")

    def _keep(self) -> None:
        if not self._name and not self._content:  # a form that was sent without choosing a file
            return
        self.uploads.append(Upload(self._name or f"image {len(self.uploads) + 1}", bytes(self._content)))
        self._content = bytearray()

    def _end(self) -> None:
        self.ended = True


def _no_image() -> Refused:
    return Refused(400, "no_image", f"There is no image: send one or several as the field '{FIELD}' of a form.")


def _damaged_form() -> Refused:
    return Refused(400, "damaged_form", "The form (multipart/form-data) is damaged or ends early.")


def _too_many_bytes(limits: Limits) -> Refused:
    most = f"{limits.max_bytes / 1e6:g} MB"
    return Refused(413, "too_many_bytes", f"This is too large: a request may have {most}.")


def _too_many_pixels(upload: Upload, size: str, limits: Limits) -> Refused:
    most = f"{limits.max_pixels / 1e6:g} megapixels"
    return Refused(413, "too_many_pixels", f"{upload.name} has too many pixels{size}; {most} are allowed.")


def _broken(upload: Upload, why: str) -> Refused:
    return Refused(422, "broken_image", f"{upload.name} is damaged: {why.rstrip('.')}.")
