"""The web application: a page for people and an API for programs."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import Environment
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..data.detections import THRESHOLD
from ..tasks.table import TASKS
from ..utils.version import __version__
from .address import LOOPBACK
from .answers import Allowed, Answer, Health, Info, Overlay, Seconds, Trouble
from .guard import Guard
from .limits import RETRY, Limits, Refused
from .metrics import Metrics
from .service import TOP, Answered, Options, Service, as_hex
from .uploads import FIELD, Upload, read_uploads, readable

T = TypeVar("T")

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""The page's files by URL path."""

PATHS = (*PAGE, "/docs", "/predict", "/info", "/healthz", "/metrics", "/openapi.json")

MOST = 1000
"""Maximum number of classes in a request."""

PARTS = ("prepare", "queue", "model", "overlay")
"""Parts of an image's processing time."""

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""OpenAPI description of the body of /predict, which reads the body itself, within the limits."""

TROUBLES: dict[int | str, dict[str, Any]] = {
    status: {"model": Trouble} for status in (400, 403, 408, 413, 415, 422, 500, 503, 504)
}


def make_app(
    service: Service, metrics: Metrics, names: Collection[str] = LOOPBACK, any_address: bool = False
) -> FastAPI:
    """The application around a service; it closes the service at shutdown.

    Args:
        names, any_address: Valid hosts; see `Guard`.
    """
    predictor, limits = service.predictor, service.limits
    own_threshold: float = getattr(predictor, "threshold", THRESHOLD)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title=f"dmformer: {predictor.name}",
        version=__version__,
        docs_url=None,  # these pages would load scripts from another site
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, metrics=metrics, paths=PATHS, names=names, any_address=any_address)
    app.add_exception_handler(HTTPException, _refuse_path)
    app.add_exception_handler(RequestValidationError, _refuse_query)
    for path, (file, kind) in PAGE.items():
        content = files("dmformer.serve").joinpath(file).read_text("utf-8")
        app.add_api_route(path, _give(content, kind), include_in_schema=False)

    @app.post(
        "/predict", response_model=Answer, response_model_exclude_none=True, responses=TROUBLES, openapi_extra=BODY
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST, description="Classes to return.")] = TOP,
        overlay: Annotated[bool, Query(description="Draw the class activation, the mask, or the boxes.")] = False,
        class_: Annotated[
            str | None, Query(alias="class", description="The class that the overlay shows; implies an overlay.")
        ] = None,
        mask: Annotated[bool, Query(description="Return the segmenter's mask.")] = False,
        threshold: Annotated[
            float, Query(ge=0, le=1, description="Minimum score of a detector's objects.")
        ] = own_threshold,
    ) -> Any:
        """Classes of images, their masks, or the objects in them."""
        options = Options(top, overlay, class_, mask, threshold)
        service.check(options)
        with service.place():
            begin = time.perf_counter()
            uploads = await _read(request, limits)
            read = time.perf_counter() - begin
            try:
                async with asyncio.timeout(limits.timeout - read):
                    answers = asyncio.gather(*(service.answer(upload, options) for upload in uploads))
                    found = await _while_connected(request, answers)
            except TimeoutError:
                told = f"There was no answer within {limits.timeout:g} seconds: try again, or a smaller image."
                raise Refused(504, "timeout", told, RETRY) from None
        if all(answered.status != 200 for answered in found):
            return _trouble(found)
        longest = {part: max(getattr(answered.times, part) for answered in found) for part in PARTS}
        spent = {"read": read, **longest, "total": time.perf_counter() - begin}
        return Answer(
            model=predictor.name,
            form=predictor.form,
            task=predictor.task,
            results=[answered.result for answered in found],
            seconds=Seconds(**{part: round(seconds, 6) for part, seconds in spent.items()}),
        )

    template = Environment(autoescape=True, trim_blocks=True).from_string(
        files("dmformer.serve").joinpath("docs.html").read_text("utf-8")
    )

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        """The same as /openapi.json, as a page that loads nothing from other sites."""
        text = template.render(schema=app.openapi(), address=request.base_url)
        return Response(text, media_type="text/html")

    @app.get("/info", response_model_exclude_none=True)
    async def info() -> Info:
        """The model, its classes, and the possible requests."""
        palette = getattr(predictor, "palette", None)
        return Info(
            model=predictor.name,
            form=predictor.form,
            task=predictor.task,
            kind=TASKS[predictor.task].model,
            version=__version__,
            classes=list(predictor.class_names),
            palette=None if palette is None else [as_hex(colour) for colour in palette],
            threshold=getattr(predictor, "threshold", None),
            overlay=Overlay(offered=service.overlay_refusal is None, why_not=service.overlay_refusal),
            limits=Allowed(
                bytes=limits.max_bytes,
                pixels=limits.max_pixels,
                images=limits.max_images,
                seconds=limits.timeout,
                formats=readable(),
            ),
        )

    @app.get("/healthz")
    async def healthz(response: Response) -> Health:
        """Whether the server is ready, for health checks."""
        if not service.is_alive:
            response.status_code = 503
        status = "ready" if service.is_alive else "failed"
        return Health(status=status, model=predictor.name, form=predictor.form, task=predictor.task)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """The server's metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type=metrics.content_type)

    return app


async def _read(request: Request, limits: Limits) -> list[Upload]:
    kind, length = request.headers.get("content-type", ""), request.headers.get("content-length")
    try:
        async with asyncio.timeout(limits.timeout):
            return await read_uploads(kind, length, request.stream(), limits)
    except TimeoutError:
        told = f"The request did not arrive within {limits.timeout:g} seconds."
        raise Refused(408, "slow_request", told, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise _disconnected() from None


async def _while_connected(request: Request, work: asyncio.Future[T]) -> T:
    """The result of the work, which is cancelled if the client disconnects or the time limit is reached."""
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _disconnected()
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _disconnected() -> Refused:
    return Refused(400, "disconnected", "The client disconnected.")


def _trouble(found: list[Answered]) -> JSONResponse:
    first = found[0]
    sentence = str(first.result.error)
    if len(found) > 1:
        sentence = f"None of the {len(found)} images could be used. {sentence}"
    results = [answered.result for answered in found] if len(found) > 1 else None
    trouble = Trouble(error=sentence, reason=str(first.result.reason), results=results)
    return JSONResponse(trouble.model_dump(by_alias=True, exclude_none=True), first.status)


def _give(content: str, kind: str) -> Any:
    async def give() -> Response:
        return Response(content, media_type=kind)

    return give


async def _refuse_path(request: Request, error: Any) -> Response:
    sentences = {404: "There is nothing here.", 405: "This path does not support this method."}
    reasons = {404: "not_found", 405: "wrong_method"}
    reason = reasons.get(error.status_code, "refused")
    raise Refused(error.status_code, reason, sentences.get(error.status_code, str(error.detail)), error.headers)


async def _refuse_query(request: Request, error: Any) -> Response:
    first = error.errors()[0]
    raise Refused(422, "bad_query", f"The parameter '{first['loc'][-1]}' is invalid: {first['msg']}.")
