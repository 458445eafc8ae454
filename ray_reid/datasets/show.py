"""One observation of a run in full: what it is, where it comes from, what was measured on it."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from PIL import Image

from ray_reid import images, schema, storage
from ray_reid.images import Pixels
from ray_reid.places import Place
from ray_reid.runtime.results import Manifest, RunState

FOLDER = "shown"
"""Where in a run directory the images are put that somebody asked to see."""
MIN_DIGITS, DIGITS = 6, 32
NUM_CANDIDATES = 3
INDENT = 13
# A character shows two pixels: the upper one in its colour, the lower one as its background.
UPPER_HALF = "\u2580"
MAX_COLUMNS, MAX_LINES = 48, 32
Line = tuple[str, str]
# What is told of a personalised image besides its own row.
PERSONALISE, PROMPTS, CLASS_PROMPT, REFERENCES = (
    "personalise", "enhance/prompts", "class_prompt", "references",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A part of a table that holds an observation."""

    table: str
    """Name relative to the run directory."""
    group: pads.Fragment
    """The row group with the row."""


@dataclass(frozen=True)
class Shown:
    """An observation, told and with its image."""

    observation_id: str
    story: str
    """Lines of `name  value`."""
    image: bytes
    pixels: Pixels | None
    """(H, W, 3); null for an image that does not decode."""
    suffix: str
    """Of a file with the image; `.bin` for one of no known format."""


def show(run: Place, observation: str) -> Shown:
    """Find an observation in the published tables of a run and tell all that they say of it.

    Args:
        run: A run directory, finished or not.
        observation: The id, or its first digits if no other id begins with them.

    Raises:
        ValueError: If that is no id, or names no observation or more than one.
    """
    state = RunState.read(run)
    tables = state.tables()
    if not tables:
        raise ValueError(f"{str(run)!r} has no tables yet")
    prefix = observation.lower()
    if not re.fullmatch(f"[0-9a-f]{{{MIN_DIGITS},{DIGITS}}}", prefix):
        raise ValueError(
            f"observation {observation!r} is not the id of one, or its first {MIN_DIGITS} or more "
            "digits: 0 to 9 and a to f"
        )
    found = _search(tables, prefix)
    records = {key: parts for key, parts in found.items() if _record(parts) is not None}
    if len(records) != 1:
        raise ValueError(_refusal(prefix, sorted(records), run))
    ((key, parts),) = records.items()
    row = _row(parts, key)
    lines = _story(row, parts, key)
    if row[schema.ORIGIN] == "synthetic":
        lines += _personal(state, tables, row)
    if row[schema.PARENT]:
        lines += [("", ""), *_parent(tables, row[schema.PARENT])]
    image = row[schema.IMAGE]
    suffix = images.SUFFIX_OF.get(_format(image) or "", ".bin")
    return Shown(key, _laid_out(lines), image, _decoded(image), suffix)


def save(shown: Shown, run: Place, file: Path | None) -> Place:
    """Write the image as it is stored, into a file or into the run's folder `shown`.

    Returns:
        The file.
    """
    target = file or run / FOLDER / f"{shown.observation_id}{shown.suffix}"
    if file is None:
        target.parent.mkdir(exist_ok=True)
    target.write_bytes(shown.image)
    return target


def half_blocks(pixels: Pixels, columns: int = MAX_COLUMNS) -> str:
    """Draw an image in coloured characters for a terminal (24-bit ANSI).

    Args:
        pixels: (H, W, 3) RGB; shrunk to fit, in its proportions.
        columns: Most characters a line.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, min(columns, MAX_COLUMNS) / width, 2 * MAX_LINES / height)
    size = max(1, round(width * scale)), 2 * max(1, round(height * scale / 2))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    lines = []
    for y in range(0, size[1], 2):
        cells = []
        for x in range(size[0]):
            upper, lower = (_rgb(small.getpixel((x, y + down))) for down in (0, 1))
            cells.append(f"\x1b[38;2;{upper};48;2;{lower}m{UPPER_HALF}")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _search(tables: Mapping[str, Place], prefix: str) -> dict[str, list[Part]]:
    """Ids that begin with a prefix, each with the parts that hold it, jobs' records first."""
    found: dict[str, list[Part]] = {}
    begins = pc.starts_with(pc.field(schema.OBSERVATION_ID), prefix)
    for name, path in tables.items():
        for group in _row_groups(path):
            # Only ids are read here: the images of a large table would take minutes.
            for key in group.to_table(columns=[schema.OBSERVATION_ID], filter=begins)[0]:
                found.setdefault(key.as_py(), []).append(Part(name, group))
    return found


def _row_groups(table: Place) -> Iterator[pads.Fragment]:
    dataset = storage.dataset(table)
    if schema.OBSERVATION_ID in dataset.schema.names:
        for fragment in dataset.get_fragments():
            yield from fragment.split_by_row_group()


def _record(parts: Sequence[Part]) -> Part | None:
    """The place with the whole record, image and all: a job's own rather than a sample of it."""
    # Tables of older releases have no paths.
    needed = set(schema.OBSERVATION.names) - {schema.PATH}
    whole = [place for place in parts if needed <= set(place.group.physical_schema.names)]
    own = [place for place in whole if place.table.endswith("/observations")]
    return next(iter([*own, *whole]), None)


def _row(parts: Sequence[Part], key: str) -> dict[str, Any]:
    place = _record(parts)
    assert place is not None
    there = place.group.physical_schema.names
    found = _read(place, key, [name for name in schema.OBSERVATION.names if name in there])
    return {schema.PATH: None, **found}


def _read(place: Part, key: str, columns: Sequence[str]) -> dict[str, Any]:
    own = pc.field(schema.OBSERVATION_ID) == key
    table: pa.Table = place.group.to_table(columns=list(columns), filter=own)
    row: dict[str, Any] = table.slice(0, 1).to_pylist(maps_as_pydicts="strict")[0]
    return row


def _refusal(prefix: str, candidates: Sequence[str], run: Place) -> str:
    if not candidates:
        return f"no observation of {str(run)!r} begins with {prefix!r}"
    listed = ", ".join(candidates[:NUM_CANDIDATES])
    more = " and more" if len(candidates) > NUM_CANDIDATES else ""
    return f"{len(candidates)} observations begin with {prefix!r}: {listed}{more}"


def _story(row: Mapping[str, Any], parts: Sequence[Part], key: str) -> list[Line]:
    record = _record(parts)
    assert record is not None
    lines = [("observation", key), ("table", record.table)]
    for place in parts:
        if place.table != record.table:
            lines.append(("also in", place.table + _beside(place, key)))
    for name in (schema.IDENTITY, schema.CAMERA, schema.VIEW, schema.CLOTHES, schema.TIME):
        if row[name] is not None or name in (schema.IDENTITY, schema.CAMERA):
            lines.append((name, _plain(row[name])))
    lines += [
        ("split", f"{_plain(row[schema.SPLIT])}, role {_plain(row[schema.ROLE])}"),
        ("origin", f"{_plain(row[schema.ORIGIN])}, source {_plain(row[schema.SOURCE])}"),
        *([("path", _plain(row[schema.PATH]))] if row[schema.PATH] is not None else []),
        ("licence", _plain(row[schema.LICENCE])),
        *_listed("attributes", row[schema.ATTRIBUTES]),
    ]
    for name in (schema.PROMPT, schema.PARENT, schema.SEED, schema.GENERATOR):
        if row[name] is not None:
            lines.append((name, _plain(row[name])))
    reason = row[schema.DROP_REASON]
    return [
        *lines,
        *_listed("scores", row[schema.SCORES]),
        ("verdict", "kept" if reason is None else f"dropped: {_plain(reason)}"),
        ("image", _about_image(row[schema.IMAGE])),
    ]


def _personal(state: RunState, tables: Mapping[str, Place], row: Mapping[str, Any]) -> list[Line]:
    """Of an image of a personalised model: the token of its identity, and what was tuned to."""
    made = [manifest for manifest in state.manifests() if manifest.job == PERSONALISE]
    # Of a table that the recipe has named, the run knows no more than the row says.
    if PROMPTS not in tables or any(_prompts_of(one) for one in made):
        return []
    own = pc.field(schema.IDENTITY) == row[schema.IDENTITY]
    columns = [schema.TOKEN, CLASS_PROMPT, schema.IMAGES]
    told = storage.dataset(tables[PROMPTS]).to_table(columns=columns, filter=own).to_pylist()
    if not told:
        return []
    token, class_prompt, sources = (told[0][name] for name in columns)
    lines = [
        (schema.TOKEN, _plain(token)),
        ("without it", _plain(class_prompt)),
        *_lines("sources", sources or ["none"]),
    ]
    for manifest in made:
        if manifest.facts.get(REFERENCES):
            prompts = manifest.facts.get("reference_prompts")
            of = f" of {prompts} prompts" if prompts is not None else ""
            count = f"{manifest.facts[REFERENCES]} images{of}, made without the token"
            lines.append((REFERENCES, _plain(count)))
    return lines


def _prompts_of(personalised: Manifest) -> Any:
    """The table of prompts that the recipe of a personalisation names, if any."""
    return personalised.recipe.get(PERSONALISE, {}).get("prompts")


def _lines(title: str, values: Sequence[str]) -> list[Line]:
    """One line a value, the title before the first."""
    return [(title if place == 0 else "", _plain(value)) for place, value in enumerate(values)]


def _parent(tables: Mapping[str, Place], key: str) -> list[Line]:
    """The parent's own story, one level of it."""
    found = _search(tables, key).get(key, [])
    if _record(found) is None:
        return [("parent", f"{_plain(key)} is in no table of this run")]
    return [("parent", "its own story"), *_story(_row(found, key), found, key)]


def _beside(place: Part, key: str) -> str:
    """What another table adds to the record in words and numbers, such as a caption."""
    kinds = {field.name: field.type for field in place.group.physical_schema}
    short = [
        name
        for name, kind in kinds.items()
        if name not in schema.OBSERVATION.names
        and (pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))
    ]
    values = _read(place, key, short) if short else {}
    told = "; ".join(f"{name} {_plain(value)}" for name, value in values.items())
    return f": {told}" if told else ""


def _listed(title: str, values: Mapping[str, Any] | None) -> list[Line]:
    """One line an entry, the title before the first."""
    if not values:
        return [(title, "none")]
    wide = max(len(name) for name in values)
    entries = [f"{_plain(name):<{wide}}  {_plain(value)}" for name, value in values.items()]
    return [(title, entries[0]), *(("", entry) for entry in entries[1:])]


def _plain(value: Any) -> str:
    """A value as one line; what would steer a terminal is spelled out."""
    text = "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _about_image(encoded: bytes) -> str:
    pixels = _decoded(encoded)
    if pixels is None:
        return f"does not decode, {len(encoded):,} bytes"
    return (
        f"{pixels.shape[1]} x {pixels.shape[0]} pixels, {_format(encoded)}, {len(encoded):,} bytes"
    )


def _decoded(encoded: bytes) -> Pixels | None:
    try:
        return images.decode(encoded)
    except ValueError:
        return None


def _format(encoded: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(encoded), formats=images.FORMATS) as image:
            return image.format
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _laid_out(lines: Sequence[Line]) -> str:
    return "\n".join(f"{name:<{INDENT}}{value}".rstrip() for name, value in lines)


def _rgb(colour: Any) -> str:
    return ";".join(str(channel) for channel in colour)
