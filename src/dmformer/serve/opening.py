"""From an opened model to its service, with an overlay if there can be one."""

from typing import Any

from PIL import Image

from ..predict.predictor import BoxPredictor, ClassPredictor, MaskPredictor
from ..runtimes.card import is_exported
from ..utils.errors import UserError
from .activation import Activation
from .limits import Limits
from .metrics import Metrics
from .service import BoxService, ClassService, MaskService, Service

SWITCHED_OFF = "The server was started with --no-overlay."
EXPORTED = "This is an exported file: to see where the model looks, serve the run's best/ folder."


def open_service(
    source: str,
    predictor: ClassPredictor | MaskPredictor | BoxPredictor,
    limits: Limits,
    metrics: Metrics,
    overlay: bool = True,
    batch: int = 8,
    wait: float = 0.005,
) -> Service:
    """A service that is warm: it has answered for a grey image.

    Args:
        source: Of the model, which a classifier's overlay needs once more.
        predictor: The model.
        limits: What a request may ask.
        metrics: Counts what is done.
        overlay: Whether overlays are wanted. Where they cannot be had, the service says why.
        batch, wait: Of a classifier; see `Batcher`.
    """
    model: Any = predictor
    refusal = None if overlay else SWITCHED_OFF
    if predictor.task == "segmentation":
        service: Service = MaskService(model, limits, metrics, refusal)
    elif predictor.task == "detection":
        service = BoxService(model, limits, metrics, refusal)
    else:
        if refusal is None and is_exported(source):
            refusal = EXPORTED
        activation = None
        if refusal is None:
            try:
                activation = Activation(source)
                activation([(activation.prepare(Image.new("RGB", (64, 64))), 0)])  # not every model has maps to show
            except UserError as error:
                activation, refusal = None, str(error)
        service = ClassService(model, limits, metrics, refusal, activation, batch, wait)
    service.warm_up()
    return service
