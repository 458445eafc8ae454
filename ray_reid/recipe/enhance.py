"""The section `enhance`: a prompt for every identity, and the token that stands for it."""

import string
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_reid.recipe.base import Frozen
from ray_reid.recipe.resources import StageSpec

TOKEN, CATEGORY, DESCRIPTION, ANSWER = "token", "category", "description", "answer"


def fields(template: str) -> list[str]:
    """Names of the fields of a template.

    Raises:
        ValueError: If it is none.
    """
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _check_fields(
    what: str, template: str, known: Sequence[str] | None, needed: Sequence[str]
) -> None:
    """Refuse a template with an unknown field, or without one that it needs exactly once."""
    try:
        named = fields(template)
    except ValueError as error:
        raise ValueError(f"{what} {template!r} is not a template: {error}") from error
    unknown = sorted(set(named) - set(named if known is None else known))
    if unknown or "" in named:
        raise ValueError(
            f"{what} {template!r} has the unknown field {(unknown or [''])[0]!r}; choose from "
            f"{list(known or ['the attributes of the source'])}"
        )
    for name in needed:
        if named.count(name) != 1:
            raise ValueError(
                f"{what} {template!r} must have the field '{{{name}}}' once; it has it "
                f"{named.count(name)} times"
            )


class IdentityToken(Frozen):
    """The word that stands for an identity (Diffusion-ReID, section 3.1: the IIR)."""

    kind: Literal["rare", "new"] = "rare"
    """`rare`: a word of the tokenizer's vocabulary that means next to nothing to the text encoder.
    `new`: a word that is added to it, with an embedding of its own that is trained."""
    rank: int = Field(0, ge=0)
    """Place of a rare word among the candidates, whole words of three or four letters: 0 is the
    rarest. Not read where `text` is given."""
    text: str | None = None
    """The word itself; null takes the rare word of `rank`, or `<identity>` for a new one."""
    initialise_from: str | None = None
    """Words whose mean embedding a new token begins with; null takes the category."""

    @field_validator("text")
    @classmethod
    def _is_a_word(cls, text: str | None) -> str | None:
        if text is not None and (not text or text.split() != [text]):
            raise ValueError(f"text {text!r} must be one word without spaces")
        return text


class Question(Frozen):
    """What the describer is asked of every image, and what becomes of its answers."""

    ask: str
    """`{category}` is filled in. A captioner takes the beginning of a sentence, such as
    `a {category} carrying`, or nothing."""
    say: str = "{answer}"
    """The part of the description: `carrying {answer}` keeps the verb of such a beginning."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {"ask": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _templates(self) -> "Question":
        _check_fields("question", self.ask, (CATEGORY,), ())
        _check_fields("say", self.say, (ANSWER,), (ANSWER,))
        return self


class Enhance(Frozen):
    """How the images of an identity become a prompt (Diffusion-ReID, section 3.1: LPE)."""

    style: Literal["category", "manual", "generated"] = "generated"
    """The three prompts of the paper's Fig. 3: the category alone (P_c), words that people wrote
    (P_m), or what a describer says of the images (P_g), which is the paper's choice."""
    category: str = Field("person", min_length=1)
    """What the images show."""
    questions: tuple[Question, ...] = (
        Question(
            ask="describe the clothes of this {category} in one line: upper | lower | footwear"
        ),
    )
    """They steer the describer to what is worn, carried and done: each adds its part to the
    description, which stands in their order. A text alone is one to ask."""
    max_words: int = Field(40, ge=1)
    """Most tokens of an answer."""
    around: int = Field(4, ge=0)
    """Images around the middle one of an identity's sequence under one camera that are described,
    and that the model is tuned to."""
    template: str = "a {token} {category} wearing {description}"
    """Prompt with a description."""
    plain_template: str = "a {token} {category}"
    """Prompt of style `category`."""
    manual_template: str = (
        "{upper_colour} {upper}, {lower_colour} {lower}, {footwear_colour} {footwear}"
    )
    """Description of style `manual` from the attributes of the source; its fields are their
    names."""
    manual_file: str | None = None
    """A `.csv` or `.parquet` file with columns `identity` and `description` for style `manual`, in
    place of the attributes."""
    token: IdentityToken = IdentityToken()
    stage: StageSpec = StageSpec(batch_size=16)
    """Of the describer."""

    @field_validator("questions")
    @classmethod
    def _asks(cls, questions: tuple[Question, ...]) -> tuple[Question, ...]:
        if not questions:
            raise ValueError("questions [] asks nothing; give one question, which may be empty")
        return questions

    @model_validator(mode="after")
    def _templates(self) -> "Enhance":
        known = (TOKEN, CATEGORY)
        _check_fields("template", self.template, (*known, DESCRIPTION), (TOKEN, DESCRIPTION))
        _check_fields("plain_template", self.plain_template, known, (TOKEN,))
        _check_fields("manual_template", self.manual_template, None, ())
        if self.manual_file is not None and self.style != "manual":
            raise ValueError(
                f"manual_file {self.manual_file!r} is for style 'manual', but style is "
                f"{self.style!r}; set the style, or manual_file to null"
            )
        return self
