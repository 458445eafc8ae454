"""Answers of a model about clothes: from free text to one short phrase for each part of the body.

Models are asked for `upper | lower | footwear` and do not all comply. Five forms are read: that
one, parts behind their names, a numbered list, a list with semicolons or bullets, and a sentence
or a list with commas, whose garments say which part they belong to.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from ray_reid.recipe.outfits import PARTS

Answer = tuple[str | None, str | None, str | None]
"""Upper, lower and footwear as one answer names them; None where it does not see them."""

MAX_WORDS = 8
SEPARATORS = "/;,&"
"""What may stand between several garments for one part."""
_NAMES = {
    "upper": "upper", "top": "upper", "lower": "lower", "bottom": "lower", "footwear": "footwear",
    "shoes": "footwear",
}  # fmt: skip
# A name with what may stand before it: a number, a bullet, a short word.
_NAME = (
    r"(?:(?:\d[.)]|[-\u2022]|\band|\bthe) )*"
    rf"\b({'|'.join(_NAMES)})(?:[ -]?(?:body|clothes|clothing|garments?|wear)){{0,2}}"
    r"(?: ?[:=] ?| [-\u2013] )"
)
_LABEL, _FIRST_LABEL = re.compile(_NAME), re.compile(rf"^{_NAME}")
# A tokenizer may put spaces around the hyphen of a t-shirt.
_HYPHEN = re.compile(r"\s*-\s*")
_GARMENT = re.compile(rf"[^\W\d_](?:[^\W_]|[ '{SEPARATORS}-])*")
_NOTHING = re.compile(
    r"|(none|nothing|unknown|unclear)\b.*|n/?a|(.*\b)?not\b.*"
    r"|no (\w+|.*\b(visible|shown|seen)\b.*)"
)
_MARKUP = re.compile(r"[*`\"{}\[\]]")
# A star that stands alone is a bullet; others are emphasis.
_STAR = re.compile(r"(?<!\S)\*(?!\S)")
_NUMBER = re.compile(r"(?:^|\s)\d[.)] ")
_BULLET = re.compile(r"(?:^| )[-\u2022] ")
_LEAD = re.compile(
    r"^(?:(?:the|this|a) )?(?:person|man|woman|individual|subject|he|she|they)"
    r"(?: in (?:the|this) (?:image|picture|photo))?"
    r" (?:(?:(?:is|are) )?(?:wearing|dressed in)|wears?|has on|in) "
)
_COMMA, _JOINED = re.compile(r", (?:and )?"), re.compile(r", (?:and |with )?|,| with ")
_COLOURS = frozenset({
    "white", "grey", "gray", "black", "red", "orange", "yellow", "green", "blue", "navy", "purple",
    "brown", "pink", "beige", "tan",
})  # fmt: skip
# Garments by the words that end their names: what is not among them is read in the other forms.
_ENDS: Mapping[str, frozenset[str]] = {
    "upper": frozenset({
        "blazer", "blouse", "cardigan", "coat", "dress", "hoodie", "jacket", "jersey", "jumper",
        "parka", "polo", "pullover", "shirt", "sweater", "sweatshirt", "t-shirt", "tee", "top",
        "tshirt", "tunic", "vest",
    }),
    "lower": frozenset({
        "capris", "chinos", "jeans", "joggers", "leggings", "pants", "shorts", "skirt", "slacks",
        "sweatpants", "tights", "trousers",
    }),
    "footwear": frozenset({
        "boots", "flats", "footwear", "heels", "loafers", "sandals", "shoes", "slippers",
        "sneakers", "trainers",
    }),
}  # fmt: skip


def parse_answer(text: str) -> Answer | None:
    """Read an answer in one of the five forms.

    Returns:
        None if it names no three parts, a part is no short phrase, or no part is seen at all.
    """
    if text.count("|"):
        return _checked(text.split("|"))
    lines = _MARKUP.sub(" ", _STAR.sub("-", text)).lower().splitlines()
    whole = "\n".join(" ".join(line.split()) for line in lines)
    line = " ".join(whole.split())
    for parts in (_named(whole), _numbered(line), _listed(line), _told(line)):
        answer = None if parts is None else _checked([_LEAD.sub("", part) for part in parts])
        if answer is not None:
            return answer
    return None


def first_answer(text: str) -> Answer | None:
    """What a chat model says among more than was asked: its first line that can be read, or all."""
    parsed = (parse_answer(part) for part in (*text.splitlines(), text))
    return next((answer for answer in parsed if answer is not None), None)


def plain(part: str) -> str:
    """A part in lower case, without its name and what stands around it."""
    stripped = " ".join(part.lower().split()).strip(f" .\"'{SEPARATORS}")
    return _HYPHEN.sub("-", _FIRST_LABEL.sub("", stripped))


def is_seen(part: str) -> bool:
    """Whether a plain part names anything."""
    return not _NOTHING.fullmatch(part)


def _checked(parts: Sequence[str]) -> Answer | None:
    """Three parts as an answer, unless one is no short phrase or none is seen."""
    if len(parts) != len(PARTS):
        return None
    known = [plain(part) for part in parts]
    seen = [part if is_seen(part) else None for part in known]
    if not any(seen):
        return None
    for part in seen:
        if part is not None and not (
            _GARMENT.fullmatch(part)
            and len(part.split()) <= MAX_WORDS
            # The form that was asked for, repeated.
            and part not in PARTS
        ):
            return None
    upper, lower, footwear = seen
    return upper, lower, footwear


def _named(text: str) -> list[str] | None:
    """`upper: ... lower: ... footwear: ...`, in any order; a part ends with its line."""
    labels = list(_LABEL.finditer(text))
    ends = [*(label.start() for label in labels[1:]), len(text)]
    found = {
        _NAMES[label[1]]: _sentence(text[label.end() : end].strip())
        for label, end in zip(labels, ends, strict=True)
    } if labels else {}  # fmt: skip
    whole = len(labels) == len(PARTS) == len(found)
    return [found[part] for part in PARTS] if whole else None


def _numbered(line: str) -> list[str] | None:
    """`1. ... 2. ... 3. ...`."""
    _, *parts = _NUMBER.split(line)
    return [_sentence(part) for part in parts] or None


def _listed(line: str) -> list[str] | None:
    """Three parts with semicolons between, or each behind a bullet."""
    before, *parts = _BULLET.split(line)
    return parts if parts and not before else line.split(";")


def _told(line: str) -> list[str] | None:
    """A sentence, or a list with commas, whose garments tell the parts."""
    sentence = _LEAD.sub("", _sentence(line))
    for pieces in (_COMMA.split(sentence), _apart(sentence)):
        found = {part: _of(pieces, ends) for part, ends in _ENDS.items()}
        if all(len(own) == 1 for own in found.values()):
            return [found[part][0] for part in PARTS]
    return None


def _apart(sentence: str) -> list[str]:
    """The garments of a sentence; an "and" between two colours of one parts nothing."""
    found = []
    for piece in _JOINED.split(sentence):
        first, *others = piece.split(" and ")
        found.append(first)
        for other in others:
            if _COLOURS.intersection(found[-1].split()[-1:]):
                found[-1] += f" and {other}"
            else:
                found.append(other)
    return found


def _of(pieces: Iterable[str], ends: frozenset[str]) -> list[str]:
    """The pieces that end with one of some garments."""
    words = {piece: plain(piece).split() for piece in pieces}
    return [piece for piece, own in words.items() if own and own[-1] in ends]


def _sentence(text: str) -> str:
    """The first sentence of a text, or of its first line."""
    return re.split(r"\.(?:\s|$)|\n", text, maxsplit=1)[0]
