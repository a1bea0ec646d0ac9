"""dmformer serve: run the quick checks, bind the port, load the model, serve."""

import sys
from dataclasses import dataclass

from ..data.limits import MAX_PIXELS
from ..utils.errors import UserError
from ..utils.extras import needs
from .checks import check_source
from .parsing import parse

MOST_MEGAPIXELS = MAX_PIXELS / 1e6
"""The largest image that may be allowed."""


@dataclass(frozen=True)
class ServeOptions:
    """Serve a trained model on this machine: a web page for people, a JSON API for programs.

    On the page, drop, choose or paste a photo. It shows the classes and where the model looks, the segmentation, or the
    detected objects. Requires pip install 'dmformer[serve]'; to show where a classifier looks, also
    'dmformer[explain]'.

    Only this machine can reach it, unless --host says otherwise. It has no users and no encryption: before you make it
    reachable from elsewhere, put it behind a proxy that has both. Ctrl-C or SIGTERM stops it after the running requests
    are answered, with exit code 130 or 143.

    examples:
      dmformer serve runs/photos-1/best                    then open http://127.0.0.1:8000/
      dmformer serve model.onnx --port 9000                an exported file, without PyTorch
      curl -F images=@dress.jpg 'http://127.0.0.1:8000/predict?top=3'
      curl -F images=@a.jpg -F images=@b.jpg http://127.0.0.1:8000/predict
      curl -H 'Content-Type: image/jpeg' --data-binary @dress.jpg http://127.0.0.1:8000/predict
      curl http://127.0.0.1:8000/healthz
      dmformer serve runs/photos-1/best --names photos.example.org    behind a proxy that keeps this name
    """

    source: str
    """A run's best/ folder, hf-hub:owner/name, or an exported .onnx or .xml file."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 accepts connections from every machine that can reach this one."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    names: tuple[str, ...] = ()
    """Host names, besides this machine's own, under which browsers may reach the server; guards against other sites."""
    max_mb: float = 20.0
    """Maximum request size, in megabytes."""
    max_megapixels: float = 50.0
    """Maximum image size, read from its header before it is decoded."""
    max_images: int = 16
    """Maximum images per request."""
    timeout: float = 30.0
    """Maximum seconds from a request's first byte to its response."""
    batch: int = 8
    """Classifiers: maximum images, from several requests, per batch of the model."""
    wait_ms: float = 5.0
    """Classifiers: milliseconds that a batch waits for more images."""
    queue: int = 64
    """Maximum running requests; clients beyond that are asked to retry. With --max-mb it bounds memory."""
    reduce_to: float = 2.1
    """Segmenters, detectors: larger photos are reduced to this many megapixels, to limit time and memory per photo;
    masks and boxes are scaled back up."""
    threads: int | None = None
    """Threads of the model; by default one per core."""
    overlay: bool = True
    """Offer overlays: where a classifier looks, which runs the model a second time; a segmenter's colours; boxes."""


def serve(arguments: list[str]) -> None:
    options = parse(ServeOptions, arguments, "serve")
    _check(options)
    check_source(options.source, exported=True)

    from ..serve.address import is_loopback, known_names, listen, url

    place = listen(options.host, options.port)
    if not is_loopback(place):
        print(
            f"dmformer: everyone who reaches {options.host} can use this server: it has no users and no encryption.",
            file=sys.stderr,
        )
    from ..predict.predictor import open_predictor

    with needs("serve", "dmformer serve"):
        from ..serve.app import make_app
        from ..serve.limits import Limits
        from ..serve.metrics import Metrics
        from ..serve.opening import open_service
        from ..serve.server import run

    predictor = open_predictor(options.source, options.threads)
    limits = Limits(
        max_bytes=round(options.max_mb * 1e6),
        max_pixels=round(options.max_megapixels * 1e6),
        max_images=options.max_images,
        timeout=options.timeout,
        requests=options.queue,
        work_pixels=round(options.reduce_to * 1e6),
    )
    metrics = Metrics()
    service = open_service(
        options.source, predictor, limits, metrics, options.overlay, options.batch, options.wait_ms / 1000
    )
    if options.overlay and service.overlay_refusal is not None:
        print(f"dmformer: no overlay: {service.overlay_refusal}", file=sys.stderr)
    app = make_app(service, metrics, known_names(place, options.host, options.names), not is_loopback(place))
    told = f"{predictor.name} ({predictor.form}): {url(place)}"
    run(app, place, options.timeout, lambda: print(told, flush=True))


def _check(options: ServeOptions) -> None:
    for option in ("max_mb", "timeout", "reduce_to"):
        if getattr(options, option) <= 0:
            raise UserError(f"--{option.replace('_', '-')} is {getattr(options, option):g}: it must be above 0.")
    for option in ("max_images", "batch", "queue", "threads"):
        if (value := getattr(options, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is {value}: it must be 1 or more.")
    if options.wait_ms < 0:
        raise UserError(f"--wait-ms is {options.wait_ms:g}: it cannot be negative.")
    if not 0 < options.max_megapixels <= MOST_MEGAPIXELS:
        most = f"{MOST_MEGAPIXELS:g}"
        raise UserError(f"--max-megapixels is {options.max_megapixels:g}: it must be above 0, and at most {most}.")
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port is {options.port}: ports are 0 to 65535.")
