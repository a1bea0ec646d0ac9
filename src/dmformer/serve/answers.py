"""What the API returns, as its OpenAPI description has it."""

from pydantic import BaseModel, Field


class ClassShare(BaseModel):
    """A class of a photo: its probability, or its share of the pixels and its colour."""

    name: str = Field(serialization_alias="class")
    probability: float | None = None
    share: float | None = None
    colour: str | None = Field(default=None, examples=["#5ab4e6"])


class Object(BaseModel):
    """An object on a photo, with its box in pixels of the photo as it was sent: left, upper, right and lower edge."""

    name: str = Field(serialization_alias="class")
    score: float
    box: tuple[float, float, float, float]
    colour: str = Field(examples=["#5ab4e6"])


class Result(BaseModel):
    """Of one image: classes, likeliest first, shares, largest first, or objects, surest first; or why there is none."""

    name: str
    classes: list[ClassShare] | None = None
    shares: list[ClassShare] | None = None
    objects: list[Object] | None = None
    overlay: str | None = Field(default=None, description="A PNG as a data URI.")
    overlay_class: str | None = Field(default=None, description="The class that the overlay shows.")
    mask: str | None = Field(default=None, description="Ids of the classes, from 0: a grey PNG as a data URI.")
    reduced_to: tuple[int, int] | None = Field(
        default=None, description="Width and height that a large photo was reduced to before a segmenter or a detector."
    )
    error: str | None = None
    reason: str | None = None


class Seconds(BaseModel):
    """What the time went into; of several images the longest."""

    read: float = Field(description="The request's body arrived.")
    prepare: float = Field(description="Decoding, resizing, normalising.")
    queue: float = Field(description="Waiting for the model, and for others in the same batch.")
    model: float = Field(description="The batch that the image was in.")
    overlay: float = Field(description="The class activation, and drawing.")
    total: float


class Answer(BaseModel):
    """To /predict."""

    model: str
    form: str
    task: str
    results: list[Result]
    seconds: Seconds


class Trouble(BaseModel):
    """Why there is no answer: a sentence for people, a word for programs."""

    error: str
    reason: str
    results: list[Result] | None = Field(default=None, description="Of several images that were all refused.")


class Health(BaseModel):
    """That the server is ready, and for what."""

    status: str
    model: str
    form: str
    task: str


class Overlay(BaseModel):
    """Whether overlays are drawn, or why not."""

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
    """The model and what may be asked of it."""

    model: str
    form: str
    task: str
    version: str
    classes: list[str]
    palette: list[str] | None = None
    overlay: Overlay
    limits: Allowed
