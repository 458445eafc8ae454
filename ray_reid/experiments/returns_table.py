"""What the synthetic-return report found: gains with their intervals, prices, and where to stop."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_reid.experiments import query_ap
from ray_reid.experiments.returns import ADDED, REAL_ONLY, Plan, ReturnPoint, num_images
from ray_reid.experiments.trials import AP, Trial
from ray_reid.ranking import bootstrap
from ray_reid.ranking.bootstrap import Interval, Resampled
from ray_reid.recipe.returns import Arm, Budget
from ray_reid.runtime.sections import Table

RETURNS = "returns"
"""Entry of a sweep's `table.json`."""
DO_NOT = "do not use them"
THOUSAND = 1000
BUDGETS: Mapping[str, str] = {"steps": "equal steps", "epochs": "equal epochs"}


def result(
    plan: Plan,
    trials: Mapping[tuple[str, int], Trial],
    failed: Mapping[tuple[str, int], str],
) -> dict[str, Any]:
    """Return what the report holds, as JSON has it; shares of mAP are between 0 and 1.

    Args:
        plan: What was trained.
        trials: By setting and seed.
        failed: Why trials failed, by setting and seed.
    """
    names = [REAL_ONLY, *plan.points]
    seeds = [seed for seed in plan.sweep.seeds if (REAL_ONLY, seed) not in failed]
    # An arm without a training of any seed that real images only have cannot be compared.
    names = [name for name in names if any((name, seed) not in failed for seed in seeds)]
    found: dict[str, Any] = {
        "generator": plan.generator,
        "cost": None if plan.cost is None else plan.cost.model_dump(),
        "level": bootstrap.LEVEL,
        "seeds": seeds,
        "points": [],
        "advice": [],
    }
    if not names:
        return found
    resampled = bootstrap.resample(_precisions(names, seeds, trials, failed))
    done = {name: _done(name, seeds, trials, failed) for name in names}
    base = num_images(done[REAL_ONLY].resolved.recipe, done[REAL_ONLY].inputs.tables)["real"]
    found["real_only"] = {
        "images": base,
        "steps": done[REAL_ONLY].batches,
        "mAP": asdict(resampled.gain(0)),
    }
    for number, name in enumerate(names[1:], start=1):
        own = [trials[name, seed] for seed in seeds if (name, seed) not in failed]
        found["points"].append(_point(plan, name, own, base, resampled, number))
    found["advice"] = _advice(names, resampled, found["points"])
    return found


def _precisions(
    names: Sequence[str],
    seeds: Sequence[int],
    trials: Mapping[tuple[str, int], Trial],
    failed: Mapping[tuple[str, int], str],
) -> NDArray[np.float64]:
    """(A, S, Q) average precision of each query; NaN where a trial failed."""
    rows = {
        (name, seed): query_ap.unpack(trials[name, seed].read()[AP])
        for name in names
        for seed in seeds
        if (name, seed) not in failed
    }
    missing = np.full_like(next(iter(rows.values())), np.nan)
    return np.array([[rows.get((name, seed), missing) for seed in seeds] for name in names])


def _done(
    name: str,
    seeds: Sequence[int],
    trials: Mapping[tuple[str, int], Trial],
    failed: Mapping[tuple[str, int], str],
) -> Trial:
    return next(trials[name, seed] for seed in seeds if (name, seed) not in failed)


def _point(
    plan: Plan, name: str, own: Sequence[Trial], base: int, resampled: Resampled, number: int
) -> dict[str, Any]:
    """A point of a curve: what was added, what it took to make, and what it gains."""
    point = plan.points[name]
    counts = [num_images(one.resolved.recipe, one.inputs.tables) for one in own]
    more = [count["real"] - base + count["synthetic"] for count in counts]
    added = sum(more) / len(more)
    gain = resampled.gain(number, 0)
    hours = _hours(plan, point, added)
    per = {
        "per_1000": gain.times(THOUSAND / added) if added else None,
        "per_hour": gain.times(1 / hours) if hours else None,
    }
    return {
        "setting": name,
        **asdict(point),
        "images": added,
        "steps": own[0].batches,
        "hours": hours,
        "mAP": asdict(resampled.gain(number)),
        "gain": asdict(gain),
        **{key: None if value is None else asdict(value) for key, value in per.items()},
    }


def _hours(plan: Plan, point: ReturnPoint, added: float) -> float | None:
    """Device-hours of the images that had to be made; of real ones nobody knows the price."""
    if plan.cost is None or point.arm == "real":
        return None
    # What is drawn at random need not be filtered, so no more are made than are trained on.
    return plan.cost.hours(point.drawn if point.arm == "kept" else round(added))


def _advice(
    names: Sequence[str], resampled: Resampled, points: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Where to stop, for each kind of added images and each budget."""
    curves: dict[tuple[Budget, Arm], list[Mapping[str, Any]]] = {}
    for point in points:
        curves.setdefault((point["budget"], point["arm"]), []).append(point)
    advice = []
    for (budget, arm), curve in curves.items():
        places = [0, *(names.index(point["setting"]) for point in curve)]
        chosen = bootstrap.stop_at(resampled.lower_bounds(places))
        stop = curve[chosen - 1] if chosen else None
        advice.append({
            "budget": budget,
            "arm": arm,
            "stop": None if stop is None else stop["setting"],
            "sentence": _sentence(budget, arm, curve, stop),
        })  # fmt: skip
    return advice


def _sentence(
    budget: Budget, arm: Arm, curve: Sequence[Mapping[str, Any]], stop: Mapping[str, Any] | None
) -> str:
    """Say in words what to do; without its full stop, as notes of the report are."""
    what = f"{BUDGETS[budget].capitalize()}, {ADDED[arm]}"
    if stop is None:
        costs = all(point["gain"]["high"] < 0 for point in curve)
        why = "every amount costs mAP" if costs else "no amount is shown to raise mAP"
        return f"{what}: {DO_NOT}: {why}"
    more = [point for point in curve if point["images"] > stop["images"]]
    end = "no larger amount is shown to be better" if more else "it is the largest amount tried"
    made = f" of {stop['drawn']} made" if arm == "kept" else ""
    return f"{what}: stop at {stop['images']:.0f} images{made}: {_points(stop['gain'])}; {end}"


def tables(found: Mapping[str, Any]) -> tuple[Table, ...]:
    """Lay out the report."""
    if not found["points"]:
        return ()
    base = found["real_only"]
    device = "device" if found["cost"] is None else found["cost"]["device"]
    rows = [(REAL_ONLY, "0", str(base["steps"]), _percent(base["mAP"]), "-", "-", "-")]
    for point in found["points"]:
        rows.append((
            f"{BUDGETS[point['budget']]}: {_named(point)}",
            f"{point['images']:.0f}",
            str(point["steps"]),
            _percent(point["mAP"]),
            _points(point["gain"]),
            _points(point["per_1000"]),
            _points(point["per_hour"]),
        ))  # fmt: skip
    header = ("real and", "images", "steps", "mAP", "gain", "per 1,000", f"per {device}-hour")
    return (Table("Synthetic return", header, tuple(rows), _note(found), measured=True),)


def notes(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The recommendations, a sentence each."""
    return tuple(one["sentence"] for one in found["advice"])


def caption(found: Mapping[str, Any]) -> str:
    """Say what the picture shows."""
    return (
        f"What added images gain: points of mAP over real images only, with their "
        f"{100 * found['level']:.0f} % intervals. A ring is where to stop; a curve without one is "
        "of images that are not shown to be of use."
    )


def _named(point: Mapping[str, Any]) -> str:
    made = f" of {point['drawn']}" if point["arm"] == "kept" else ""
    return f"{ADDED[point['arm']]}{made}"


def _note(found: Mapping[str, Any]) -> str:
    seeds, base = found["seeds"], found["real_only"]
    over = "the queries and the seeds" if len(seeds) > 1 else "the queries of one seed"
    said = (
        f"{base['images']} real images in every training. Gains are points of mAP over real images "
        f"only, in brackets their {100 * found['level']:.0f} % interval over {over} ({len(seeds)})."
    )
    cost = found["cost"]
    if cost is None:
        return f"{said} The run does not say what an image took to make."
    took = cost["seconds"] * cost["devices"] / cost["rows"]
    return (
        f"{said} An image took {took:.2g} {cost['device']}-seconds to make and filter, measured on "
        f"{cost['rows']} images."
    )


def _percent(value: Mapping[str, float]) -> str:
    return f"{100 * value['mean']:.1f} %"


def _points(value: Mapping[str, float] | None) -> str:
    """Points of mAP with their interval."""
    if value is None:
        return "-"
    mean, low, high = (f"{100 * value[name]:+.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def intervals(found: Mapping[str, Any], budget: str, arm: str) -> list[tuple[float, Interval]]:
    """Added images and gain of each point of a curve."""
    return [
        (point["images"], Interval(**point["gain"]))
        for point in found["points"]
        if point["budget"] == budget and point["arm"] == arm
    ]
