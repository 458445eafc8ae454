"""The base of all recipe models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Height or width of an image in pixels; less shows nothing, and some backbones fail on it.
ImageSide = Annotated[int, Field(ge=8)]


class Frozen(BaseModel):
    """Base of every recipe model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
