"""Create the service of an open model, with an overlay if possible."""

from collections.abc import Callable
from functools import partial

from PIL import Image

from ..predict.predictor import BoxPredictor, ClassPredictor, MaskPredictor
from ..runtimes.card import is_exported
from ..tasks.table import TASKS
from ..utils.errors import UserError
from .activation import Activation
from .limits import Limits
from .metrics import Metrics
from .service import BoxService, ClassService, LabelService, MaskService, Service

SWITCHED_OFF = "The server was started with --no-overlay."
EXPORTED = "Exported files have no overlay: to see where the model looks, serve the run's best/ folder."


def open_service(
    source: str,
    predictor: ClassPredictor | MaskPredictor | BoxPredictor,
    limits: Limits,
    metrics: Metrics,
    overlay: bool = True,
    batch: int = 8,
    wait: float = 0.005,
) -> Service:
    """A service that is warmed up with a grey image.

    Args:
        source: Source of the model, which a classifier's overlay opens a second time.
        overlay: Whether overlays are wanted. If they are unavailable, the service says why.
        batch, wait: Batching of a classifier; see `Batcher`.
    """
    task, refusal = TASKS[predictor.task], None if overlay else SWITCHED_OFF
    if task.answer not in SERVICES:
        raise UserError(f"{predictor.name} is a {task.model}, which cannot be served.")
    service = SERVICES[task.answer](source, predictor, limits, metrics, refusal, batch, wait)
    service.warm_up()
    return service


def _class_service(
    kind: type[ClassService],
    source: str,
    predictor: ClassPredictor,
    limits: Limits,
    metrics: Metrics,
    refusal: str | None,
    batch: int,
    wait: float,
) -> Service:
    if refusal is None and is_exported(source):
        refusal = EXPORTED
    activation = None
    if refusal is None:
        try:
            activation = Activation(source)
            activation([(activation.prepare(Image.new("RGB", (64, 64))), 0)])  # not every model has maps to show
        except UserError as error:
            activation, refusal = None, str(error)
    return kind(predictor, limits, metrics, refusal, activation, batch, wait)


SERVICES: dict[str, Callable[..., Service]] = {
    "labels": partial(_class_service, ClassService),
    "tags": partial(_class_service, LabelService),
    "masks": lambda source, predictor, limits, metrics, refusal, *_: MaskService(predictor, limits, metrics, refusal),
    "boxes": lambda source, predictor, limits, metrics, refusal, *_: BoxService(predictor, limits, metrics, refusal),
}
"""By the `answer` of a `Task`."""
