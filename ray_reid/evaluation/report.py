"""The report of a run: one self-contained page, one JSON file, tables for the console.

Every job contributes a section of its own (`Job.report`); nothing here knows what they hold.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray_reid import places
from ray_reid.evaluation.evaluate import FILE
from ray_reid.recipe import recipes
from ray_reid.runtime.results import RunState
from ray_reid.runtime.sections import Section, Table, aligned

PAGE = "report.html"
TEMPLATE = "report.html.j2"
EVALUATE = "evaluate"
"""The job whose section comes first: the headline."""
DRAWN = "Drawn images: shows the mechanism, not state of the art."
NOTHING = "nothing is evaluated yet, or not since the data or the model changed"


@dataclass(frozen=True)
class Contribution:
    """What a job, or a sweep, shows of itself."""

    name: str
    section: Section
    pictures: Mapping[str, str] = field(default_factory=dict)
    """File names in the job's directory, and their captions."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    title: str
    caption: str
    data: str
    """As a data URI."""


def write_report(state: RunState, shown: Sequence[Contribution], drawn: bool = False) -> None:
    """Write `recipe.yaml`, `report.html` and, once evaluated, `metrics.json` for people.

    Args:
        state: The run; pictures are taken from its current results.
        shown: What current jobs and sweeps show, in that order.
        drawn: Whether the images are drawings, which every figure is then said to be of.
    """
    places.write_text(state.path / "recipe.yaml", recipes.dump(state.recipe))
    if EVALUATE in state:
        places.write_text(state.path / FILE, (state.folder(EVALUATE) / FILE).read_text())
    else:
        # Figures of older data or of an older model must not look like those of this run.
        (state.path / FILE).unlink(missing_ok=True)
    places.write_text(state.path / PAGE, _page(state, shown, drawn))


def console(shown: Sequence[Contribution], drawn: bool = False) -> str:
    """Lay out the headline figures and all other tables as plain text."""
    ordered = _ordered(shown)
    tables = [
        aligned(table)
        for one in ordered
        if one.section.printed
        for table in _tables(one.section, drawn)
    ]
    missing = [] if ordered and ordered[0].name == EVALUATE else [NOTHING]
    return "\n\n".join([*missing, *tables])


def headline(state: RunState) -> dict[str, float]:
    """Return the model's figures of a run, by name; empty before it is evaluated."""
    if EVALUATE not in state:
        return {}
    result: dict[str, Any] = json.loads((state.folder(EVALUATE) / FILE).read_text())
    return dict(result["metrics"])


def _ordered(shown: Sequence[Contribution]) -> list[Contribution]:
    """The headline first, the others as they come."""
    return sorted(shown, key=lambda one: one.name != EVALUATE)


def _tables(section: Section, drawn: bool) -> list[Table]:
    return [
        replace(table, note=f"{table.note} {DRAWN}") if drawn and table.measured else table
        for table in section.tables
    ]


def _page(state: RunState, shown: Sequence[Contribution], drawn: bool) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ordered = _ordered(shown)
    return environment.get_template(TEMPLATE).render(
        recipe=state.recipe,
        drawn=DRAWN if drawn else "",
        evaluated=bool(ordered) and ordered[0].name == EVALUATE,
        sections=[
            replace(one.section, tables=tuple(_tables(one.section, drawn))) for one in ordered
        ],
        pictures=_pictures(state, shown),
        manifests=state.manifests(),
        resolved=recipes.dump(state.recipe),
    )


def _pictures(state: RunState, shown: Sequence[Contribution]) -> list[Picture]:
    pictures = []
    for one in shown:
        for name, caption in one.pictures.items():
            file = state.folder(one.name) / name
            if file.is_file():
                kind = "jpeg" if file.suffix == ".jpg" else "png"
                title = file.stem.replace("_", " ")
                pictures.append(Picture(title, caption, _embedded(file.read_bytes(), kind)))
        for drawing in one.section.drawings:
            pictures.append(Picture(drawing.title, drawing.caption, _embedded(drawing.png)))
    return pictures


def _embedded(encoded: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
