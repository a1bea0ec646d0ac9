"""What takes part: a candidate is a model at an image size, in a form, on a number of threads."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from .limits import Limits

FORMS = {
    "fused": ("fused", "float32", None),
    "onnxruntime": ("onnxruntime", "float32", "onnx"),
    "onnxruntime-int8": ("onnxruntime", "int8", "onnx"),
    "openvino": ("openvino", "float32", "openvino"),
    "openvino-int8": ("openvino", "int8", "openvino"),
}
"""Each form with the form and the dtype of `dmformer bench`, and the format of `dmformer export`; None for PyTorch."""

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""Packages that the forms of a format need; quantising to int8 needs onnxruntime too."""


@dataclass(frozen=True)
class Question:
    """What is asked: the photos, the limits, the candidates and the time. Saved with the answer.

    Attributes:
        recipe: Name of the recipe of the trials.
        heads: Heads or frameworks on the backbones; empty if the task has no choice of them.
        batch_size: Images per call when latency and memory are measured.
        hours: Time for measuring and training together.
        epochs: Maximum number of epochs of a trial; None for the recipe's.
        seeds: Number of trainings of each finalist.
        seed: The first of their seeds, and the seed of the split.
    """

    data: str
    recipe: str
    limits: Limits
    batch_size: int
    hours: float
    models: tuple[str, ...]
    heads: tuple[str, ...]
    image_sizes: tuple[int, ...]
    forms: tuple[str, ...]
    threads: tuple[int, ...]
    epochs: int | None
    seeds: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> "Question":
        """The question that `to_dict` wrote, read from JSON."""
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{**kept, "limits": Limits(**values["limits"])})


@dataclass(frozen=True)
class Entrant:
    """What is trained: a model, perhaps with a head on it, at an image size. Its forms share the weights."""

    model: str
    head: str
    image_size: int

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.head, str(self.image_size))))


@dataclass(frozen=True)
class Candidate:
    """What is measured: an entrant in a form on a number of threads."""

    entrant: Entrant
    form: str
    threads: int

    @property
    def name(self) -> str:
        return f"{self.entrant.name}/{self.form}/{self.threads}"

    @property
    def int8(self) -> bool:
        return FORMS[self.form][1] == "int8"


def entrants(question: Question) -> list[Entrant]:
    return [
        Entrant(model, head, size)
        for model in question.models
        for head in question.heads or ("",)
        for size in question.image_sizes
    ]


def candidates(entrant: Entrant, question: Question) -> list[Candidate]:
    return [Candidate(entrant, form, threads) for threads in question.threads for form in question.forms]


def missing_package(form: str) -> str | None:
    """The first package that a form needs and that is not installed."""
    format = FORMS[form][2]
    needed = (*PACKAGES[format], "onnxruntime") if format else ()
    return next((package for package in needed if find_spec(package) is None), None)


def available_forms() -> Sequence[str]:
    return tuple(form for form in FORMS if missing_package(form) is None)
