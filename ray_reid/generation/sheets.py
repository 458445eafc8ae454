"""The pictures of the review job: kept and dropped images, each filter's, images of an identity."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_reid import images, schema, storage
from ray_reid.generation import agreement
from ray_reid.places import Place
from ray_reid.runtime import figures
from ray_reid.runtime.figures import Card

KEPT, DROPPED = "generated_kept.png", "generated_dropped.png"
NUM_KEPT, NUM_DROPPED = 48, 8
"""Most images of the sheet of kept ones, and of each reason on the sheet of dropped ones."""
COUNTS = "images_of_identities.png"
NUM_IDENTITIES, NUM_SIDE = 6, 3
"""Most identities of a filter's sheet, and images of either verdict that are shown of each."""
COLUMNS = (
    schema.OBSERVATION_ID,
    schema.IDENTITY,
    schema.PARENT,
    schema.PROMPT,
    schema.ATTRIBUTES,
    schema.SCORES,
    schema.DROP_REASON,
)


@dataclass(frozen=True)
class Selection:
    """Some rows of a table on disk."""

    table: Place
    rows: pa.Table
    """`COLUMNS`, in the order of their ids."""

    def ids(self) -> list[str]:
        """Ids of the rows, in order."""
        found: list[str] = self.rows[schema.OBSERVATION_ID].to_pylist()
        return found


def draw(made: Selection, kept: Selection, real: Place, out: Place) -> dict[str, str]:
    """Write the pictures of the review into a directory.

    Args:
        made: All generated images.
        kept: Those that passed every filter.
        real: The table of the images that they were made from.
        out: The directory.

    Returns:
        File name to caption, in the order in which to show them; a sheet without an image is
        left out.
    """
    captions = {}
    if kept.rows.num_rows:
        # Sorted by identity, so that evenly spaced rows are of as many identities as there are.
        order = [(schema.IDENTITY, "ascending"), (schema.OBSERVATION_ID, "ascending")]
        shown = _spaced(kept.rows.sort_by(order), NUM_KEPT)
        heading = f"kept: {shown.num_rows} of {kept.rows.num_rows}"
        cards = _cards(kept.table, shown, _about)
        figures.save(figures.contact_sheet({heading: cards}), out / KEPT)
        captions[KEPT] = (
            "Generated images that passed every filter, evenly spaced in the list of all of them "
            "sorted by identity; nobody picked them."
        )
    captions |= _draw_dropped(made, out)
    for name in agreement.verdicts(made.rows):
        captions |= _draw_filter(name, made, real, out)
    return captions | _draw_counts(made, kept, real, out)


def _draw_dropped(made: Selection, out: Place) -> dict[str, str]:
    rejected = dropped(made)
    groups = {}
    reasons = [kind(text) for text in rejected[schema.DROP_REASON].to_pylist()]
    for reason, count in Counter(reasons).most_common():
        rows = rejected.filter(pa.array([own == reason for own in reasons]))
        groups[f"{reason}: {count}"] = _cards(made.table, _spaced(rows, NUM_DROPPED), _measured)
    if not groups:
        return {}
    figures.save(figures.contact_sheet(groups, NUM_DROPPED), out / DROPPED)
    return {
        DROPPED: (
            f"Generated images that were dropped: each reason with its count, and at most "
            f"{NUM_DROPPED} of its images with what was measured, evenly spaced in the list of "
            "all of them sorted by id."
        )
    }


def _draw_filter(name: str, made: Selection, real: Place, out: Place) -> dict[str, str]:
    """Write the sheet of one filter: source, kept and dropped images of some identities (Fig. 4).

    Returns:
        File name to caption; nothing unless it keeps one image and drops another.
    """
    rows = agreement.measured(made.rows)
    passed = agreement.verdicts(rows)[name]
    sides = {}
    for verdict, mask in (("kept", passed), ("dropped", ~passed)):
        side = rows.filter(pa.array(mask)).to_pylist(maps_as_pydicts="strict")
        sides[verdict] = _of_identities(side)
    # Identities with both sides first: they show where the filter draws its line.
    names = sorted(sides["kept"].keys() & sides["dropped"].keys())
    names = names or sorted(sides["kept"].keys() | sides["dropped"].keys())
    if not sides["kept"] or not sides["dropped"]:
        return {}
    shown = [names[n] for n in storage.evenly_spaced(len(names), NUM_IDENTITIES)]
    groups = {}
    for identity in shown:
        own = {verdict: side.get(identity, []) for verdict, side in sides.items()}
        heading = f"{identity}: {len(own['kept'])} kept, {len(own['dropped'])} dropped"
        groups[heading] = _filter_cards(name, own, made.table, real)
    file = f"filter_{name}.png"
    figures.save(figures.contact_sheet(groups, 1 + 2 * NUM_SIDE), out / file)
    return {
        file: (
            f"The filter {name!r} by itself: of each identity a source image, images that it keeps "
            "and images that it drops, with its score; evenly spaced in the list of all, nobody "
            "picked them."
        )
    }


def _of_identities(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(str(row[schema.IDENTITY]), []).append(row)
    return found


def _filter_cards(
    name: str, own: Mapping[str, Sequence[Mapping[str, Any]]], table: Place, real: Place
) -> list[Card]:
    """The row of one identity: its source, then kept and dropped images in their columns."""
    chosen = {
        verdict: [rows[n] for n in storage.evenly_spaced(len(rows), NUM_SIDE)] if rows else []
        for verdict, rows in own.items()
    }
    every = [row for rows in chosen.values() for row in rows]
    ids = [row[schema.OBSERVATION_ID] for row in every]
    encoded = storage.images_by_id(table, ids, kept_only=False)
    parents = [row[schema.PARENT] for row in every if row[schema.PARENT] is not None]
    sources = storage.images_by_id(real, parents[:1])
    cards = [Card(images.decode(image), "source") for image in sources.values()]
    for verdict, rows in chosen.items():
        found = [
            Card(
                images.decode(encoded[row[schema.OBSERVATION_ID]]),
                f"{verdict} {_measures(row).get(name, float('nan')):.2f}",
            )
            for row in rows
        ]
        white = np.full_like(images.decode(encoded[ids[0]]), 255)
        cards += [*found, *[Card(white, "")] * (NUM_SIDE - len(found))]
    return cards


def _draw_counts(made: Selection, kept: Selection, real: Place, out: Place) -> dict[str, str]:
    """Write the curve of images per identity, before and after the filters (Fig. 5)."""
    where = storage.REAL
    owned = Counter(storage.read(real, [schema.IDENTITY], where)[schema.IDENTITY].to_pylist())
    before, after = (Counter(one.rows[schema.IDENTITY].to_pylist()) for one in (made, kept))
    identities = sorted(name for name in before if name is not None)
    curves = {
        "generated": [before[name] for name in identities],
        "generated, kept": [after[name] for name in identities],
    }
    if owned:
        curves = {"real": list(owned.values()), **curves}
    if owned.keys() & before.keys():
        curves["real and kept"] = [count + after[name] for name, count in owned.items()]
    figures.save(figures.distribution(curves, "images of an identity", "identities"), out / COUNTS)
    return {
        COUNTS: (
            "How many images the identities have: a point (x, y) says that y % of the identities "
            "have at most x images; the steeper a curve, the better they are balanced."
        )
    }


def dropped(made: Selection) -> pa.Table:
    """Return the rows that a filter, or the generator itself, has dropped."""
    return made.rows.filter(made.rows[schema.DROP_REASON].is_valid())


def kind(text: str) -> str:
    """Return the kind of a reason: filters write `kind: what was measured`."""
    return text.partition(":")[0].strip()


def _spaced(rows: pa.Table, count: int) -> pa.Table:
    """At most `count` rows, evenly spaced from the first to the last."""
    return rows.take(storage.evenly_spaced(rows.num_rows, count))


def _cards(table: Place, rows: pa.Table, caption: Callable[[Mapping[str, Any]], str]) -> list[Card]:
    shown = rows.to_pylist(maps_as_pydicts="strict")
    ids = [row[schema.OBSERVATION_ID] for row in shown]
    encoded = storage.images_by_id(table, ids, kept_only=False)
    return [Card(images.decode(encoded[row[schema.OBSERVATION_ID]]), caption(row)) for row in shown]


def _about(row: Mapping[str, Any]) -> str:
    """What an image was asked to show."""
    attributes = [value for value in (row[schema.ATTRIBUTES] or {}).values() if value]
    return " ".join(attributes) or row[schema.PROMPT] or row[schema.IDENTITY] or ""


def _measured(row: Mapping[str, Any]) -> str:
    """What a filter said of an image; the scores as well where it gave no number."""
    name, _, said = row[schema.DROP_REASON].partition(":")
    if any(sign.isdigit() for sign in said):
        return str(said).strip()
    scores = _measures(row)
    own = {score: value for score, value in scores.items() if name in score}
    listed = ", ".join(f"{name} {value:.2f}" for name, value in (own or scores).items())
    return "; ".join(part for part in (said.strip(), listed) if part) or _about(row)


def _measures(row: Mapping[str, Any]) -> dict[str, float]:
    """Scores of a row but those that say what a filter makes of them."""
    scores = row[schema.SCORES] or {}
    return {
        name: value
        for name, value in scores.items()
        if value is not None and not name.startswith(schema.PASSED)
    }
