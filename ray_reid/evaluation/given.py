"""A model that is given instead of trained: its recipe, and the job that brings it into a run."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_reid import places
from ray_reid.datasets import sources
from ray_reid.datasets.readers import READERS
from ray_reid.evaluation import evaluate, floors
from ray_reid.models import card
from ray_reid.places import Place
from ray_reid.ranking import doubt, open_set
from ray_reid.recipe import keys, recipes
from ray_reid.recipe.recipe import Recipe
from ray_reid.runtime.job import Job, Work
from ray_reid.runtime.results import POINTER, RunState
from ray_reid.training import train
from ray_reid.training.outcome import TrainFacts

MEASURED = {
    "seed", "resources", "models", "ingest", "embed", "evaluate", "index", "gallery", "serve"
}  # fmt: skip
"""Sections of another recipe that say what is measured and how; the rest is the package's."""
EVALUATED = (evaluate.FILE, evaluate.RANKED, open_set.FILE, doubt.FILE)
"""Files that an evaluation adds to a package: those of an earlier one are not taken over."""
UNKNOWN = "Not known here: the package came without a card."
RUNS = Path("runs")
"""Parent of the runs that nobody has named."""
PROTOCOL = "evaluate.protocol"

Data = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A folder, or one or more sources as a recipe has them under `ingest.sources`."""


def recipe_of(
    packages: Sequence[str],
    settings: Mapping[str, Any],
    recipe: str | None = None,
    profile: str | None = None,
    data: Data | None = None,
) -> Recipe:
    """Compose the recipe that scores a package, or several as an ensemble.

    Args:
        packages: As `ray_reid.load` takes them; those after the first become `embed.ensemble`. The
            first may be one of the `floors`.
        settings: Dotted keys that are set last.
        recipe: Name or file of a recipe whose data set and protocol are used. Without one the
            protocol is that of the data set, and images are embedded in the views that the
            package was made for.
        profile: Of that recipe.
        data: The data set, in the place of the recipe's.

    Raises:
        ValueError: If there is no package or no data set, or a setting breaks a rule.
    """
    from ray_reid.models import package

    if not packages:
        raise ValueError("no model package is given; give one or more")
    if recipe is None and profile is not None:
        raise ValueError(f"the profile {profile!r} is of no recipe; give --recipe as well")
    first = packages[0]
    own = floors.recipe_of(first) if floors.is_floor(first) else package.recipe_of(first)
    embed = own.embed.model_dump(mode="json", include={"flip", "scales"})
    values: dict[str, Any] = {"embed": embed}
    if recipe is not None:
        values = recipes.load(recipe, profile).model_dump(mode="json", include=MEASURED)
    values["embed"]["ensemble"] = list(packages[1:])
    values |= {"name": own.name, "profile": own.profile, "package": first}
    values["train"] = own.train.model_dump(mode="json")
    if data is not None:
        keys.assign(values, sources.KEY, sources_of(data))
    for key, value in settings.items():
        keys.assign(values, key, value)
    composed = recipes.validate(values)
    if not composed.ingest.sources:
        raise ValueError(
            f"there is no data set to score {first!r} on; give a folder of images with "
            "--data FOLDER, or a recipe that lists data sets with --recipe"
        )
    if "protocol" in composed.evaluate.model_fields_set:
        return composed
    return recipes.override(composed, {PROTOCOL: protocol_of(composed)})


def sources_of(data: Data) -> list[dict[str, Any]]:
    """Write a data set as a recipe does; the layout of a folder is recognised.

    Raises:
        ValueError: If the folder has no known layout, or more than one.
    """
    if isinstance(data, str | Path):
        known = sources.recognised(Path(data), "a source with a pattern instead of a folder")
        return [known.model_dump(mode="json")]
    return [dict(one) for one in ([data] if isinstance(data, Mapping) else data)]


def protocol_of(recipe: Recipe) -> str:
    """Return the protocol that the data sets of a recipe are measured by.

    Raises:
        ValueError: If a source breaks a rule, or they have different protocols.
    """
    own = {
        READERS[source.reader].protocol(source) for source in sources.resolve(recipe.ingest.sources)
    }
    if len(own) > 1:
        raise ValueError(
            f"the data sets have different protocols, {sorted(own)}; choose one with {PROTOCOL}"
        )
    return own.pop()


def run_of(packages: Sequence[str], recipe: Recipe) -> Path:
    """Name the run that scores packages on the data sets of a recipe: `runs/PACKAGE-on-DATA`."""
    models = "+".join(map(_short, packages))
    roots = [getattr(source, "root", None) or source.reader for source in recipe.ingest.sources]
    return RUNS / f"{models}-on-{'+'.join(map(_short, roots))}"


def _short(name: str) -> str:
    """Give the last part of a path, or the name of a registered model, as folders may be named."""
    from ray_reid.models.package import REGISTERED

    registered = name.startswith(REGISTERED)
    last = name.removeprefix(REGISTERED) if registered else places.place(name).resolve().name
    return re.sub(r"[^\w.@-]+", "-", last).strip("-.") or "root"


def check_apart(package: str, run: Place) -> None:
    """Refuse a run directory that holds the package: its results would leave that run.

    Raises:
        ValueError: If it does.
    """
    place, own = places.place(package).resolve(), run.resolve()
    if own == place or own in place.parents:
        raise ValueError(
            f"run {str(run)!r} holds the package {package!r}; give another --run, because a run is "
            "of one recipe"
        )


def check_own(recipe: Recipe, run: Place) -> None:
    """Refuse a run that nobody has named where another package of that name was scored.

    Raises:
        ValueError: If one was.
    """
    if (run / POINTER).exists():
        known = RunState.read(run).recipe.package
        if known != recipe.package:
            raise ValueError(
                f"run {str(run)!r} is of the package {known!r}, not {recipe.package!r}; give "
                "another --run"
            )


def check(recipe: Recipe) -> None:
    """Refuse a package that is not there, is no ReID model, or was trained otherwise.

    Raises:
        ValueError: Names the package or the key of the recipe.
    """
    from ray_reid.models import package

    own = package.recipe_of(_package(recipe)).train
    if own.target != "identity":
        raise ValueError(
            f"package {recipe.package!r} was trained with train.target {own.target!r}, but "
            "'identity' is needed"
        )
    for name in type(own).model_fields:
        asked, there = getattr(recipe.train, name), getattr(own, name)
        if asked != there:
            raise ValueError(
                f"train.{name} is {asked!r}, but the package {recipe.package!r} was trained with "
                f"{there!r}; a model that is given is not trained: leave the section train to "
                "`ray-reid evaluate`"
            )


def outside(recipe: Recipe) -> str:
    """Fingerprint of the files that are taken over."""
    from ray_reid.models import package
    from ray_reid.models.pretrained import references

    folder = package.fetched(_package(recipe))
    return references.digest(_files(folder), folder)


def give_job(work: Work) -> TrainFacts:
    """Copy the package to `model/`, where a training would write it; it has a card afterwards."""
    from ray_reid.models import package

    found = package.fetched(_package(work.recipe))
    target = work.out / "model"
    # A killed attempt may have left half a copy.
    places.remove(target)
    with places.written(target) as folder:
        for file in _files(found):
            shutil.copy2(file, folder / file.name)
        if not (folder / card.FILE).is_file():
            page = card.write(package.recipe_of(found), UNKNOWN)
            places.write_text(folder / card.FILE, page)
    return TrainFacts(params={"package": work.recipe.package})


def _package(recipe: Recipe) -> str:
    assert recipe.package is not None, "only a recipe with a package has this job"
    return recipe.package


def _files(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.is_file() and file.name not in EVALUATED
    )


JOB = Job(
    # It takes the place of the training, under whose name others ask for the model.
    train.JOB.name,
    give_job,
    covered=("package",),
    check=check,
    outside=outside,
    uses_ray=False,
    facts=TrainFacts,
)
