"""The report of a run: one self-contained page, one JSON file, one table for the console."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_reid import storage
from ray_reid.evaluation import report_tables
from ray_reid.evaluation.evaluate import FILE
from ray_reid.evaluation.report_tables import HEADLINE, Table, aligned
from ray_reid.ranking.scoring import UNREFINED
from ray_reid.recipe import recipes, sweeps
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime import figures
from ray_reid.runtime.run import MANIFEST, Manifest, read_manifest

OUTSIDE = "outside"
TEMPLATE = "report.html.j2"
SHOWN = ("ingest", "adapt", "generate", "review", "compare", "evaluate")
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
        nothing = "nothing is evaluated yet, or not since the data or the model changed"
        return "\n\n".join([nothing, *map(aligned, tables(run))])
    lines = ["".join([f"{'':<32}", *(f"{name:>9}" for name in HEADLINE)])]
    for name, cells in _rows(result):
        lines.append("".join([f"{name:<32}", *(f"{cell:>9}" for cell in cells)]))
    drawn = [DRAWN] if "miniature" in result["stamp"]["sources"] else []
    first = "\n".join([*lines, _sentence(result["stamp"]), *drawn])
    return "\n\n".join([first, *map(aligned, tables(run))])


def tables(run: Path) -> list[Table]:
    """What a run says of generation: candidates, stages, reasons, compared trainings.

    Jobs that have not run, or not since what they rest on changed, have no table.
    """
    jobs = {job: _facts(run, job) for job in SHOWN}
    drawn = f" {DRAWN}" if _is_drawn(jobs["ingest"]) else ""
    found = [
        report_tables.candidates(
            jobs["adapt"].get("candidates", []), jobs["generate"].get("candidate")
        ),
        report_tables.stages(jobs["review"].get("stages", []), drawn),
        report_tables.reasons(jobs["review"].get("counts", {})),
        report_tables.compared(jobs["compare"].get("table", []), drawn),
        report_tables.refined(jobs["evaluate"].get("refinement"), drawn),
    ]
    swept = [report_tables.swept(result, drawn) for result in _sweeps(run).values()]
    return [table for table in [*found, *swept] if table is not None]


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


def _facts(run: Path, job: str) -> Mapping[str, Any]:
    """What a published job says of itself; empty if it is absent or older than its inputs."""
    return read_manifest(run, job).facts if _is_current(run, job) else {}


def _sweeps(run: Path) -> dict[Path, Mapping[str, Any]]:
    """What sweeps of a run found, by their folders; not those of tables replaced since."""
    files = sorted(run.glob(f"tune-*/{sweeps.TABLE}"))
    found = {file.parent: json.loads(file.read_text()) for file in files}
    return {
        folder: result
        for folder, result in found.items()
        if all(
            _is_current(run, job) and read_manifest(run, job).key == key
            for job, key in result["inputs"].items()
        )
    }


def _is_current(run: Path, job: str) -> bool:
    if not (run / job / MANIFEST).is_file():
        return False
    # Inputs that no job made have no directory.
    inputs = {name: key for name, key in read_manifest(run, job).inputs.items() if name != OUTSIDE}
    return all(
        _is_current(run, name) and read_manifest(run, name).key == key
        for name, key in inputs.items()
    )


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
        notes=_notes(facts.get("evaluate", {})) if result else [],
        stamp=_flat(result["stamp"]) if result else {},
        tables=tables(run),
        pictures=_pictures(run, manifests),
        counts=ingest.get("counts", {}),
        dropped=ingest.get("dropped", {}),
        warnings=ingest.get("warnings", []),
        curve=_curve(facts.get("train", {}).get("history", [])),
        validation=facts.get("train", {}).get("validation"),
        manifests=manifests,
        resolved=recipes.dump(recipe),
    )


def _is_drawn(ingest: Mapping[str, Any]) -> bool:
    return any(source["reader"] == "miniature" for source in ingest.get("sources", []))


def _rows(result: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Name and percentages of each line of the headline table, the model's cases first."""
    cases, both = result["stamp"]["cases"], result["stamp"]["both_directions"]
    # The headline is the first case, or the mean of both directions.
    named = {"": "mean" if both else cases[0], **{f"{c}_": c for c in cases[0 if both else 1 :]}}
    rows = []
    for prefix, case in named.items() if len(cases) > 1 else (("", ""),):
        rows.append((f"{MODEL}, {case}" if case else MODEL, _cells(result["metrics"], prefix)))
    if result.get("refinement"):
        alone = _cells(result["metrics"], UNREFINED)
        rows.insert(1, (f"{MODEL}, without variants", alone))
    return [*rows, (FLOOR, _cells(result["reference"], ""))]


def _cells(values: Mapping[str, float], prefix: str) -> list[str]:
    """Percentages; of several draws with their standard deviation."""
    spread = {name: values.get(f"{prefix}{name}_std") for name in HEADLINE}
    return [
        f"{100 * values[prefix + name]:.1f} " + ("%" if std is None else f"± {100 * std:.1f} %")
        for name, std in spread.items()
    ]


def _sentence(stamp: Mapping[str, Any]) -> str:
    query, gallery = stamp["query"], stamp["gallery"]
    ways = "both directions, mean" if stamp["both_directions"] else "queries in gallery"
    if stamp["draws"] > 1:
        ways = f"mean of {stamp['draws']} random draws"
    return (
        f"{query['images']} queries, {gallery['images']} gallery images, {query['identities']} "
        f"identities; {ways}; protocol {stamp['protocol']}, AP {stamp['average_precision']}; "
        f"skipped queries: {sum(stamp['skipped'].values())}; "
        f"images dropped at ingest: {sum(stamp['dropped'].values())}; "
        f"post-processing: {', then '.join(stamp['postprocess']) or 'none'}"
    )


def _notes(facts: Mapping[str, Any]) -> list[str]:
    """What post-processing changed, and what the thresholds of the open set are worth."""
    notes = []
    for case, changes in facts.get("postprocess", {}).items():
        for change in changes:
            counts = (f"{n} {name}" for name, n in change.items() if name != "step")
            notes.append(f"{case}, {change['step']}: {', '.join(counts)}".replace("_", " "))
    notes += _of_refinement(facts.get("refinement") or {})
    found = facts.get("open_set")
    if found and "missing" in found:
        notes.append(f"No thresholds for match and possible: {found['missing']}")
    elif found:
        for name, level in found["levels"].items():
            tar, low, high = (100 * level[key] for key in ("tar", "tar_low", "tar_high"))
            notes.append(
                f"{name} above {found[name]:.3f}: TAR {tar:.1f} % ({low:.1f} to {high:.1f} %) at "
                f"{level['far']:.2g} false matches, {level['target']:g} asked for; "
                f"{found['cameras']} camera pairs have thresholds of their own"
            )
    return notes


def _of_refinement(found: Mapping[str, Any]) -> list[str]:
    notes = []
    if found.get("queries"):
        made = found["queries"]
        notes.append(f"{made['with_variants']} of {made['queries']} queries have variants")
    if found.get("gate"):
        gate = found["gate"]
        notes.append(
            f"Refined below a margin of {gate['margin']:.3f}: {100 * gate['calibrated']:.0f} % of "
            f"the queries that it was chosen on, {100 * gate['measured']:.0f} % of the others"
        )
    if found.get("missing"):
        notes.append(f"No figures by share of queries refined: {found['missing']}")
    return notes


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
    for folder, result in _sweeps(run).items():
        if (folder / sweeps.PICTURE).is_file():
            data = _embedded((folder / sweeps.PICTURE).read_bytes())
            caption = f"{result['metric']} of each setting; lines are deviations over the seeds."
            shown.append({"title": f"Sweep {result['sweep']}", "caption": caption, "data": data})
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
            items = ("none" if item is None else str(item) for item in value)
            flat[label] = ", ".join(items) or "none"
        else:
            flat[label] = "none" if value is None else str(value)
    return flat
