"""Descriptions of clothes: answers of a model to one per clothes id, and whose to wear.

DLCR, section 3.1: an answer for every image, a summary of those of one clothes id, and of each
part of the body the most frequent description where several are left.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ray_reid import places, schema
from ray_reid.generation.generators.answers import Answer, is_seen, plain
from ray_reid.places import Place
from ray_reid.recipe.outfits import PARTS

FILE = "descriptions.parquet"
_OTHERS = re.compile(r"[/;]| or ")
_WORD, _T_SHIRT = re.compile(r"[^\W_]+"), re.compile(r"\bt[ -]shirt")
_FILLERS = frozenset({
    "a", "an", "the", "in", "of", "with", "and", "pair", "pairs", "coloured", "colored", "color",
    "colour",
})  # fmt: skip
"""Words that do not tell clothes apart."""

_COLOURS = (
    "white", "grey", "black", "red", "orange", "yellow", "green", "blue", "purple", "brown",
    "pink", "beige",
)  # fmt: skip
_GARMENTS = {
    "upper": ("t-shirt", "tank top", "shirt", "jacket", "hoodie", "coat"),
    "lower": ("trousers", "shorts", "skirt"),
    "footwear": ("sneakers", "boots", "sandals"),
}


@dataclass(frozen=True)
class Description:
    """What one clothes id looks like."""

    clothes: str
    upper: str
    lower: str
    footwear: str

    def prompt(self, template: str) -> str:
        """What asks a model for these clothes; see `Outfits.template`."""
        return template.format(upper=self.upper, lower=self.lower, footwear=self.footwear)


def summarise(answers: Sequence[Answer], summary: Answer | None = None) -> Answer:
    """One description of each part: of those that a summary leaves, the most frequent one.

    Descriptions of the same words, in whatever order, count together: "a coat in grey" is a "gray
    coat". A garment of a summary that no answer has in the same words is as frequent as the words
    that it shares with them.

    Args:
        answers: Of the images of one clothes id.
        summary: What a language model made of them; a part may name several, with `/`, `;` or
            "or" between, or a comma if an answer names what it parts. Null leaves all that the
            images' answers name.

    Returns:
        Null for a part that no answer names. Of equally frequent ones the first by name.
    """
    found: list[str | None] = []
    for number in range(len(PARTS)):
        counts = Counter(part for answer in answers if (part := answer[number]) is not None)
        named = summary[number] if summary is not None else None
        left = _several(named or "", counts)
        order = _likeness(counts) if left else _frequency(counts)
        found.append(min(left or list(counts), key=order, default=None))
    upper, lower, footwear = found
    return upper, lower, footwear


def words(part: str) -> frozenset[str]:
    """The words of a description that tell it from others, in one spelling and number."""
    spelt = _T_SHIRT.sub("tshirt", part.lower()).replace("gray", "grey")
    named = (word for word in _WORD.findall(spelt) if word not in _FILLERS)
    return frozenset(word.removesuffix("s") for word in named)


def _frequency(counts: Mapping[str, int]) -> Callable[[str], tuple[float, float, str]]:
    """Order answers: the same words most often, then the same text, then by name."""
    same: Counter[frozenset[str]] = Counter()
    for part, count in counts.items():
        same[words(part)] += count
    return lambda part: (-same[words(part)], -counts[part], part)


def _likeness(counts: Mapping[str, int]) -> Callable[[str], tuple[float, float, str]]:
    """Order garments of a summary: answers in the same words, then those that share words."""
    told = [(words(part), count) for part, count in counts.items()]

    def order(part: str) -> tuple[float, float, str]:
        own = words(part)
        same = sum(count for other, count in told if other == own)
        shared = sum(
            count * len(own & other) / len(own | other) for other, count in told if own | other
        )
        return -same, -shared, part

    return order


def _several(named: str, answered: Iterable[str]) -> list[str]:
    """The garments that a part of a summary names."""
    known = {words(part) for part in answered}
    pieces: list[str] = []
    for piece in map(plain, _OTHERS.split(named)):
        among = [plain(one) for one in piece.split(",")]
        # A comma may also part the adjectives of one garment.
        apart = words(piece) not in known and any(words(one) in known for one in among)
        pieces += among if apart else [piece]
    return [piece for piece in pieces if is_seen(piece)]


def read(path: Place) -> list[Description]:
    """Read descriptions of a job, or a file of them that somebody edited (`.parquet` or `.csv`).

    Raises:
        ValueError: If there is no such file, or a column, a description or a clothes id's
            uniqueness is missing.
    """
    if not path.is_file():
        raise ValueError(f"there is no file of descriptions {str(path)!r}")
    wanted = ["clothes", *PARTS]
    # An id of digits alone keeps its leading zeros.
    as_text = pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in wanted})
    try:
        table = (
            pyarrow.csv.read_csv(places.fetched(path), convert_options=as_text)
            if path.suffix == ".csv"
            else pq.read_table(places.fetched(path))
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{str(path)!r} has no column {missing[0]!r}; it needs {wanted}, and has "
            f"{table.column_names}"
        )
    rows = table.select(wanted).to_pylist()
    for number, row in enumerate(rows, start=1):
        empty = [name for name in wanted if not str(row[name] or "").strip()]
        if empty:
            raise ValueError(
                f"{str(path)!r}, row {number}: {empty[0]!r} of clothes {row['clothes']!r} is empty"
            )
    found = [Description(**{name: str(row[name]) for name in wanted}) for row in rows]
    twice = [name for name, count in Counter(one.clothes for one in found).items() if count > 1]
    if twice:
        raise ValueError(f"{str(path)!r} describes the clothes {twice[0]!r} twice")
    return sorted(found, key=lambda one: one.clothes)


def write(
    path: Place, found: Sequence[Description], counts: Mapping[str, Mapping[str, int]]
) -> None:
    """Write descriptions, with counts of the images behind each, as one Parquet file.

    Args:
        counts: `images` and `unparsable` by clothes id.
    """
    rows = [{**asdict(one), **counts.get(one.clothes, {})} for one in found]
    kind = pa.schema(
        [(name, pa.string()) for name in ("clothes", *PARTS)]
        + [(name, pa.int64()) for name in ("images", "unparsable")]
    )
    with places.created(path) as sink:
        pq.write_table(pa.Table.from_pylist(rows, schema=kind), sink)


def at_random(number: int, seed: int) -> list[Description]:
    """Clothes put together from lists of words, which nobody in the training set need wear."""
    rng = random.Random(seed)
    return [
        Description(
            f"random-{place}",
            *(f"{rng.choice(_COLOURS)} {rng.choice(_GARMENTS[part])}" for part in PARTS),
        )
        for place in range(number)
    ]


def choose(
    descriptions: Sequence[Description],
    observation_id: str,
    own: str | None,
    number: int,
    seed: int,
) -> list[Description]:
    """Choose the clothes that an image gets, uniformly without replacement (section 3.1).

    The order depends on the seed, the image and each clothes id alone: the first of a larger
    number are those of a smaller one, and more descriptions change no order.

    Args:
        own: The clothes id that the image shows, which is left out.

    Raises:
        ValueError: If there are fewer others.
    """
    others = [one for one in descriptions if one.clothes != own]
    if len(others) < number:
        raise ValueError(
            f"{number} outfits of each image are asked for, but there are descriptions of only "
            f"{len(others)} other clothes; ask for fewer"
        )
    order = sorted(others, key=lambda one: schema.observation_id(seed, observation_id, one.clothes))
    return order[:number]
