"""What a describer says of the images of one identity, merged to one description.

Answers are merged phrase by phrase: of each part of the body where they name parts, else phrases
that most answers have. Diffusion-ReID (section 3.1) describes a sequence; how it merges what is
said of its images is not stated.
"""

import re
from collections import Counter
from collections.abc import Sequence

from ray_reid.generation.generators import answers as reading
from ray_reid.generation.generators.descriptions import summarise, words

JOINT = ", "
_ARTICLE = re.compile(r"^(?:(?:there|it|this) is )?(?:(?:a|an|the|this) )?")
_WEARING = r"(?: (?:is|who is|that is))?(?: (?:wearing|dressed in|in))?"
_PEOPLE = "person|man|woman|individual|he|she"
# Between phrases; an "and" parts them where another one surely begins, so not two colours.
_BETWEEN = re.compile(
    r"\s*[,;|]\s*(?:and )?|\.(?:\s+|$)| and (?=(?:a|an|the|with|\w+ing) )| and (?=\w+ing$)"
)


def merge(answers: Sequence[str], category: str) -> str | None:
    """Merge what was said of several images into one description.

    Args:
        answers: One an image.
        category: What the images show; an answer may begin with it.

    Returns:
        Null if no answer says anything.
    """
    parsed = [reading.parse_answer(answer) for answer in answers]
    read = [answer for answer in parsed if answer is not None]
    if read:
        named = [part for part in summarise(read) if part is not None]
        return JOINT.join(named) or None
    told = [own for answer in answers if (own := phrases(answer, category))]
    return JOINT.join(majority(told)) or None


def phrases(answer: str, category: str) -> list[str]:
    """The phrases of an answer, without articles and without what only names the category."""
    lead = re.compile(rf"^(?:{re.escape(category.lower())}|{_PEOPLE}){_WEARING}(?: |$)")
    found = []
    for piece in _BETWEEN.split(" ".join(answer.lower().split())):
        text = _ARTICLE.sub("", piece.strip(" .\"'"))
        text = _ARTICLE.sub("", lead.sub("", text).removeprefix("wearing "))
        if words(text) and reading.is_seen(text):
            found.append(text)
    return found


def majority(told: Sequence[Sequence[str]]) -> list[str]:
    """Phrases that more than half of the answers have, in the order in which they are said.

    Phrases of the same words count together, whatever their order. Where no phrase has a majority,
    the one that shares most words with the others stands for all.
    """
    counts: Counter[frozenset[str]] = Counter()
    spelled: dict[frozenset[str], Counter[str]] = {}
    for own in told:
        for text in dict.fromkeys(own):
            spelled.setdefault(words(text), Counter())[text] += 1
        counts.update({words(text) for text in own})
    if not counts:
        return []
    kept = [key for key in counts if counts[key] * 2 > len(told)]
    if not kept:
        kept = [min(counts, key=lambda key: (-_likeness(key, counts), _spelling(spelled[key])))]
    first = {key: _place(key, told) for key in kept}
    return [_spelling(spelled[key]) for key in sorted(kept, key=lambda key: first[key])]


def _likeness(key: frozenset[str], counts: Counter[frozenset[str]]) -> float:
    return sum(count * len(key & other) / len(key | other) for other, count in counts.items())


def _spelling(texts: Counter[str]) -> str:
    """The most frequent spelling, of equally frequent ones the shortest, then the first by name."""
    return min(texts, key=lambda text: (-texts[text], len(text), text))


def _place(key: frozenset[str], told: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Mean place of a phrase in the answers that have it."""
    places = [place for own in told for place, text in enumerate(own) if words(text) == key]
    return sum(places) / len(places), " ".join(sorted(key))
