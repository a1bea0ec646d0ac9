"""Images of a request: reads the body in chunks within the limits, and checks an image's header before its pixels."""

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

from PIL import Image
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..data.decode import BrokenImageError, Reading, decode
from ..data.limits import LONGEST, Range
from ..utils.errors import first_line
from .limits import Limits, Refused

FIELD = "images"
"""Name of the form field for images."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of the allowed formats; the others are excluded because some run external programs."""

LONGEST_NAME = 200


@dataclass(frozen=True)
class Upload:
    """An uploaded file."""

    name: str
    content: bytes


async def read_uploads(
    content_type: str, content_length: str | None, body: AsyncIterator[bytes], limits: Limits
) -> list[Upload]:
    """The files in a request's body, a form with the field "images" or a single image, within the limits.

    Args:
        content_type: The header, which distinguishes a form from a single image.
        content_length: The header; if it exceeds the limit, the body is refused unread.
        body: Body of the request, in chunks.
        limits: Limits of requests.

    Raises:
        Refused: No image, too many images, too many bytes, another type of body, or a malformed form.
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


def open_image(upload: Upload, limits: Limits, at_least: int | None = None, values: Range | None = None) -> Image.Image:
    """Decode an image as 8-bit RGB (see `data.decode`), after checking its header.

    Raises:
        Refused: No image, too many pixels, an extreme aspect ratio, or damaged data.
    """
    try:
        image = Image.open(io.BytesIO(upload.content), formats=readable())
    except Image.UnidentifiedImageError:
        raise Refused(
            415, "not_an_image", f"{upload.name} is not an image in a supported format ({', '.join(readable())})."
        ) from None
    except Exception as error:  # decoders raise arbitrary errors on damaged input
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
        return decode(image, at_least, Reading(values, limits.max_pixels))
    except BrokenImageError as error:
        raise _broken(upload, first_line(error)) from None


def readable() -> list[str]:
    """The allowed formats that this build of Pillow supports."""
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
    """Parses the files of a multipart form from chunks of its body."""

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
            raise Refused(
                400,
                "unknown_field",
                f"The form has an unknown field '{told}': send images in the field '{FIELD}' only.",
            )

    def _keep(self) -> None:
        if not self._name and not self._content:  # a form sent without a chosen file
            return
        self.uploads.append(Upload(self._name or f"image {len(self.uploads) + 1}", bytes(self._content)))
        self._content = bytearray()

    def _end(self) -> None:
        self.ended = True


def _no_image() -> Refused:
    return Refused(400, "no_image", f"There is no image: send one or more in the field '{FIELD}' of a form.")


def _damaged_form() -> Refused:
    return Refused(400, "damaged_form", "The form (multipart/form-data) is damaged or ends early.")


def _too_many_bytes(limits: Limits) -> Refused:
    most = f"{limits.max_bytes / 1e6:g} MB"
    return Refused(413, "too_many_bytes", f"The request is too large: at most {most} are allowed.")


def _too_many_pixels(upload: Upload, size: str, limits: Limits) -> Refused:
    most = f"{limits.max_pixels / 1e6:g} megapixels"
    return Refused(413, "too_many_pixels", f"{upload.name} has too many pixels{size}; {most} are allowed.")


def _broken(upload: Upload, why: str) -> Refused:
    return Refused(422, "broken_image", f"{upload.name} is damaged: {why.rstrip('.')}.")
