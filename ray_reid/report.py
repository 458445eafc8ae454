"""The report of a run: one self-contained page, one JSON file, one table for the console."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_reid import config, figures, storage
from ray_reid.config import Recipe
from ray_reid.evaluate import FILE, RANKS
from ray_reid.run import Manifest, read_manifest

HEADLINE = ("mAP", *(f"rank-{k}" for k in RANKS), "mINP")
TEMPLATE = "report.html.j2"
DRAWN = "Drawn images: shows the mechanism, not state of the art."
MODEL, FLOOR = "model", "colour histogram (no learning)"


def write_report(run: Path, recipe: Recipe, manifests: Sequence[Manifest]) -> None:
    """Write `report.html` and, once something is evaluated, `metrics.json` into a run directory.

    Args:
        run: The run directory; pictures are taken from its published jobs.
        recipe: The resolved recipe.
        manifests: Of the jobs published so far, in the order in which to list them.
    """
    result = _result(run)
    if result is not None:
        storage.write_text(run / FILE, json.dumps(result, indent=2) + "\n")
    else:
        # Figures of older data or of an older model must not look like those of this run.
        (run / FILE).unlink(missing_ok=True)
    storage.write_text(run / "report.html", _page(run, recipe, manifests, result))


def summary_table(run: Path) -> str:
    """Lay out the headline figures of a run as plain text, with what they were measured on."""
    result = _result(run)
    if result is None:
        return "nothing is evaluated yet, or not since the data or the model changed"
    lines = ["".join([f"{'':<32}", *(f"{name:>9}" for name in HEADLINE)])]
    for name, cells in _rows(result):
        lines.append("".join([f"{name:<32}", *(f"{cell:>9}" for cell in cells)]))
    drawn = [DRAWN] if "miniature" in result["stamp"]["sources"] else []
    return "\n".join([*lines, _sentence(result["stamp"]), *drawn])


def headline(run: Path) -> dict[str, float]:
    """The model's figures of a run, by name; empty before it is evaluated."""
    result = _result(run)
    return dict(result["metrics"]) if result is not None else {}


def _result(run: Path) -> dict[str, Any] | None:
    """What was evaluated; null also when a job it rests on has been redone since."""
    file = run / "evaluate" / FILE
    if not file.is_file():
        return None
    inputs = read_manifest(run, "evaluate").inputs
    current = {job: read_manifest(run, job).key for job in inputs}
    return json.loads(file.read_text()) if inputs == current else None


def _page(
    run: Path, recipe: Recipe, manifests: Sequence[Manifest], result: Mapping[str, Any] | None
) -> str:
    import jinja2

    facts = {manifest.job: manifest.facts for manifest in manifests}
    ingest = facts.get("ingest", {})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        recipe=recipe,
        drawn=DRAWN if _is_drawn(ingest) else "",
        headline=HEADLINE,
        rows=_rows(result) if result else [],
        sentence=_sentence(result["stamp"]) if result else "",
        stamp=_flat(result["stamp"]) if result else {},
        pictures=_pictures(run, manifests),
        counts=ingest.get("counts", {}),
        dropped=ingest.get("dropped", {}),
        warnings=ingest.get("warnings", []),
        curve=_curve(facts.get("train", {}).get("history", [])),
        manifests=manifests,
        resolved=config.dump(recipe),
    )


def _is_drawn(ingest: Mapping[str, Any]) -> bool:
    return any(source["reader"] == "miniature" for source in ingest.get("sources", []))


def _rows(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Name and percentages of each line of the headline table, the directions under their mean."""
    rows = []
    for name, values in ((MODEL, result["metrics"]), (FLOOR, result["reference"])):
        both = f"forward_{HEADLINE[0]}" in values
        rows.append((f"{name}, mean" if both and name == MODEL else name, _cells(values, "")))
        for direction in ("forward", "reverse") if both and name == MODEL else ():
            rows.append((f"{name}, {direction}", _cells(values, f"{direction}_")))
    return rows


def _cells(values: Mapping[str, float], prefix: str) -> list[str]:
    return [f"{100 * values[prefix + name]:.1f} %" for name in HEADLINE]


def _sentence(stamp: Mapping[str, Any]) -> str:
    query, gallery = stamp["query"], stamp["gallery"]
    ways = "both directions, mean" if stamp["both_directions"] else "queries in gallery"
    return (
        f"{query['images']} queries, {gallery['images']} gallery images, {query['identities']} "
        f"identities; {ways}; protocol {stamp['protocol']}, AP {stamp['average_precision']}; "
        f"skipped queries: {sum(stamp['skipped'].values())}; "
        f"images dropped at ingest: {sum(stamp['dropped'].values())}; "
        f"re-ranking: {'yes' if stamp['re_ranking'] else 'no'}"
    )


def _pictures(run: Path, manifests: Sequence[Manifest]) -> list[dict[str, str]]:
    shown = []
    for manifest in manifests:
        captions = manifest.facts.get("captions", {})
        for name in manifest.facts.get("pictures", []):
            file = run / manifest.job / name
            if file.is_file():
                title = Path(name).stem.replace("_", " ")
                kind = "jpeg" if file.suffix == ".jpg" else "png"
                data = _embedded(file.read_bytes(), kind)
                shown.append({"title": title, "caption": captions.get(name, ""), "data": data})
    return shown


def _embedded(encoded: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _curve(history: Sequence[Mapping[str, float]]) -> str:
    return _embedded(figures.png(figures.training_curve(history))) if history else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Spell nested entries as `outer, inner`, for a table of two columns."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{label}, ") if value else {label: "none"}
        elif isinstance(value, bool):
            flat[label] = "yes" if value else "no"
        elif isinstance(value, list):
            flat[label] = ", ".join("none" if item is None else str(item) for item in value)
        else:
            flat[label] = "none" if value is None else str(value)
    return flat
