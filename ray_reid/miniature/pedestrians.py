"""Pedestrian identities (body, skin, hair, face) and the outfits that each of them wears."""

from dataclasses import dataclass
from functools import lru_cache

from ray_reid.miniature.chance import generator, pick

HAIR_STYLES = ("short", "long", "tied", "curly", "bald")
HAIR_COLOURS = ("black", "brown", "blond", "grey", "red")
FACES = ("plain", "glasses", "beard", "moustache", "mask", "sunglasses")
# Beards and moustaches are left to men.
WOMEN_FACES = ("plain", "glasses", "mask", "sunglasses")
NUM_SKINS = 5
NUM_HEIGHTS = 5
NUM_GIRTHS = 5

UPPER_KINDS = ("t-shirt", "tank top", "shirt", "jacket", "hoodie", "coat")
LOWER_KINDS = ("trousers", "shorts", "skirt")
FOOTWEAR_KINDS = ("sneakers", "boots", "sandals")
CLOTHES_COLOURS = (
    "white", "grey", "black", "red", "orange", "yellow", "green", "blue", "purple", "brown",
    "pink", "beige",
)  # fmt: skip
FOOTWEAR_COLOURS = ("white", "black", "brown", "red", "blue", "grey")
NUM_OUTFITS = 3


@dataclass(frozen=True)
class Outfit:
    """Kind and colour of what is worn above, below and on the feet."""

    upper: str
    upper_colour: str
    lower: str
    lower_colour: str
    footwear: str
    footwear_colour: str


@dataclass(frozen=True)
class Pedestrian:
    """One person.

    Attributes:
        number: Number among the identities of `seed`.
        seed: Seed of the world the person belongs to.
        gender: man or woman.
        hair: Value of HAIR_STYLES.
        hair_colour: Value of HAIR_COLOURS.
        face: Value of FACES.
        skin: 0 (lightest) to NUM_SKINS - 1.
        height: 0 (shortest) to NUM_HEIGHTS - 1.
        girth: 0 (slimmest) to NUM_GIRTHS - 1.
        legs: Length of the legs as a factor on the usual one.
    """

    number: int
    seed: int
    gender: str
    hair: str
    hair_colour: str
    face: str
    skin: int
    height: int
    girth: int
    legs: float

    @property
    def name(self) -> str:
        """Identity within the miniature sources, such as `0-12` for number 12 of seed 0."""
        return f"{self.seed}-{self.number}"

    @property
    def hair_words(self) -> str:
        """How a caption speaks of the hair."""
        return "no hair" if self.hair == "bald" else f"{self.hair} {self.hair_colour} hair"

    def outfit(self, index: int) -> Outfit:
        """Return outfit `index` (0 to NUM_OUTFITS - 1); no two share a colour above or below.

        Raises:
            ValueError: If there is no such outfit.
        """
        if not 0 <= index < NUM_OUTFITS:
            raise ValueError(f"outfit {index} is not in 0 to {NUM_OUTFITS - 1}")
        shared = generator("wardrobe", self.seed, self.number)
        uppers = shared.permutation(len(CLOTHES_COLOURS))
        lowers = shared.permutation(len(CLOTHES_COLOURS))
        own = generator("outfit", self.seed, self.number, index)
        kinds = LOWER_KINDS if self.gender == "woman" else LOWER_KINDS[:2]
        return Outfit(
            upper=pick(own, UPPER_KINDS),
            upper_colour=CLOTHES_COLOURS[int(uppers[index])],
            lower=pick(own, kinds),
            lower_colour=CLOTHES_COLOURS[int(lowers[index])],
            footwear=pick(own, FOOTWEAR_KINDS),
            footwear_colour=pick(own, FOOTWEAR_COLOURS),
        )

    def clothes(self, index: int) -> str:
        """Name outfit `index` of this person across all people."""
        return f"{self.name}-outfit{index}"

    def attributes(self, index: int) -> dict[str, str]:
        """What a caption can say of the person in outfit `index`."""
        outfit = self.outfit(index)
        return {
            "gender": self.gender,
            "hair": self.hair,
            "hair_colour": "none" if self.hair == "bald" else self.hair_colour,
            "face": self.face,
            "upper": outfit.upper,
            "upper_colour": outfit.upper_colour,
            "lower": outfit.lower,
            "lower_colour": outfit.lower_colour,
            "footwear": outfit.footwear,
            "footwear_colour": outfit.footwear_colour,
        }

    def caption(self, index: int) -> str:
        """Describe the person in outfit `index`."""
        outfit = self.outfit(index)
        upper = f"{outfit.upper_colour} {outfit.upper}"
        article = "an" if upper[0] in "aeiou" else "a"
        lower = f"{outfit.lower_colour} {outfit.lower}"
        if outfit.lower == "skirt":
            lower = f"{'an' if lower[0] in 'aeiou' else 'a'} {lower}"
        return (
            f"a {self.gender} with {self.hair_words} wearing {article} {upper}, {lower} "
            f"and {outfit.footwear_colour} {outfit.footwear}"
        )


def pedestrian_identities(num: int, seed: int) -> list[Pedestrian]:
    """Make the first `num` people of a seed; person i is the same whatever `num` is."""
    return [pedestrian_identity(number, seed) for number in range(num)]


@lru_cache(maxsize=4096)
def pedestrian_identity(number: int, seed: int) -> Pedestrian:
    """Make one person.

    Gender, hair, face, skin, height and girth number 5500 combinations; a stride that is
    prime to their number visits each once, so fewer people than that are all different.

    Raises:
        ValueError: If `number` is negative or not below the number of different people.
    """
    if not 0 <= number < MAX_PEDESTRIANS:
        raise ValueError(f"pedestrian number {number} is not in 0 to {MAX_PEDESTRIANS - 1}")
    shift = int(generator("pedestrians", seed).integers(MAX_PEDESTRIANS))
    code = (number * _STRIDE + shift) % MAX_PEDESTRIANS
    values = []
    for base in (NUM_HEIGHTS, NUM_GIRTHS, NUM_SKINS, len(_HAIRS)):
        values.append(code % base)
        code //= base
    gender, face = _GENDER_FACES[code]
    hair, hair_colour = _HAIRS[values[3]]
    own = generator("pedestrian", seed, number)
    return Pedestrian(
        number=number,
        seed=seed,
        gender=gender,
        hair=hair,
        hair_colour=hair_colour,
        face=face,
        skin=values[2],
        height=values[0],
        girth=values[1],
        legs=float(own.uniform(0.94, 1.06)),
    )


_GENDER_FACES = tuple(("man", face) for face in FACES) + tuple(
    ("woman", face) for face in WOMEN_FACES
)
# All ways to wear hair; a bald head has no hair colour and counts once, here as black.
_HAIRS = tuple(
    (style, colour)
    for style in HAIR_STYLES
    for colour in HAIR_COLOURS
    if style != "bald" or colour == "black"
)
MAX_PEDESTRIANS = NUM_HEIGHTS * NUM_GIRTHS * NUM_SKINS * len(_HAIRS) * len(_GENDER_FACES)
# A prime near the golden section of the number of people, so that neighbours differ in all.
_STRIDE = 16223
