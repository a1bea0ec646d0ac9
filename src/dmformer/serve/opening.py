"""Create the service of an open model, with an overlay if possible."""

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
        predictor: The model.
        limits: Limits of requests.
        metrics: Metrics of the service.
        overlay: Whether overlays are wanted. If they are unavailable, the service says why.
        batch, wait: Batching of a classifier; see `Batcher`.
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
                activation(
                    [(activation.prepare(Image.new("RGB", (64, 64))), 0)]
                )  # fails for models without feature maps
            except UserError as error:
                activation, refusal = None, str(error)
        service = ClassService(model, limits, metrics, refusal, activation, batch, wait)
    service.warm_up()
    return service
