"""Response models of the API, as in its OpenAPI description."""

from pydantic import BaseModel, Field


class ClassShare(BaseModel):
    """A class of an image: its probability, or its fraction of the pixels and its colour."""

    name: str = Field(serialization_alias="class")
    probability: float | None = None
    threshold: float | None = Field(
        default=None, description="Of a multi-label classifier: the class applies from this probability on."
    )
    applies: bool | None = Field(default=None, description="Of a multi-label classifier: whether the class applies.")
    share: float | None = None
    colour: str | None = Field(default=None, examples=["#5ab4e6"])


class Object(BaseModel):
    """An object in an image, with its box in pixels of the uploaded image: left, top, right and bottom edges."""

    name: str = Field(serialization_alias="class")
    score: float
    box: tuple[float, float, float, float]
    colour: str = Field(examples=["#5ab4e6"])


class Result(BaseModel):
    """Result of one image: most likely classes, largest fractions or highest-scoring objects first; or the error."""

    name: str
    classes: list[ClassShare] | None = None
    shares: list[ClassShare] | None = None
    objects: list[Object] | None = None
    overlay: str | None = Field(default=None, description="A PNG as a data URI.")
    overlay_class: str | None = Field(default=None, description="The class that the overlay shows.")
    mask: str | None = Field(default=None, description="Class ids from 0: a grey PNG as a data URI.")
    reduced_to: tuple[int, int] | None = Field(
        default=None, description="Width and height to which a large photo was reduced for a segmenter or a detector."
    )
    pages: int | None = Field(
        default=None,
        description="Number of frames or pages (up to 1,000 of a TIFF), if the file holds several; the first was read.",
    )
    error: str | None = None
    reason: str | None = None


class Seconds(BaseModel):
    """Time per step; for several images, the longest."""

    read: float = Field(description="Receiving the request's body.")
    prepare: float = Field(description="Decoding, resizing, normalising.")
    queue: float = Field(description="Waiting for the model and for other images of the batch.")
    model: float = Field(description="Running the image's batch.")
    overlay: float = Field(description="Class activation and drawing.")
    total: float


class Answer(BaseModel):
    """Response of /predict."""

    model: str
    form: str
    task: str
    results: list[Result]
    seconds: Seconds


class Trouble(BaseModel):
    """An error: a sentence for people and a code for programs."""

    error: str
    reason: str
    results: list[Result] | None = Field(
        default=None, description="Results, if several images were sent and all were refused."
    )


class Health(BaseModel):
    """State of the server and its model."""

    status: str
    model: str
    form: str
    task: str


class Overlay(BaseModel):
    """Whether overlays are available, or why not."""

    offered: bool
    why_not: str | None = None


class Allowed(BaseModel):
    """The limits of a request."""

    bytes: int
    pixels: int
    images: int
    seconds: float
    formats: list[str]


class Info(BaseModel):
    """The model and the possible requests."""

    model: str
    form: str
    task: str
    kind: str = Field(examples=["classifier"])
    version: str
    classes: list[str]
    palette: list[str] | None = None
    threshold: float | None = Field(default=None, description="Default minimum score of a detector's objects.")
    overlay: Overlay
    limits: Allowed
