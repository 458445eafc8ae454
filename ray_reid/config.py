"""Recipes: one YAML file, parsed once into frozen models, so that a typo fails before a GPU starts.

A recipe may hold `profiles`: named sets of dotted overrides (`train.epochs: 12`), the same
mechanism as `--set` on the command line. The resolved recipe is saved with the run.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ray_reid import keys
from ray_reid.learning import Train
from ray_reid.resources import Resources, StageSpec
from ray_reid.retrieval import Crop, OpenSet, Step, check_order
from ray_reid.sources import Frozen, MiniatureSource, Source
from ray_reid.synthesis import Adapt, Compare, FilterSpec, Frechet, Generate, Models, Prompts
from ray_reid.wardrobe import Describe, Guidance, Outfits, Refine

RANDOM_QUERIES = ("vehicleid", "vehicleid_inverse")
"""Protocols that draw their queries from the gallery too."""
RECIPES = Path(__file__).resolve().parent.parent / "jobs" / "recipes"


class Ingest(Frozen):
    """Files to observations."""

    sources: tuple[Source, ...] = (MiniatureSource(),)
    use: dict[str, Literal["train", "whole"]] = Field(default_factory=dict)
    """What to take of a source, by its name: `train` for its train split alone, `whole` to train
    on all of it. Sources that are not named here bring their query and gallery too."""
    max_corrupt_fraction: float = Field(0.05, ge=0, lt=1)
    """A larger share of undecodable images stops the job; below it they are kept with a reason."""
    stage: StageSpec = StageSpec(actors=2, batch_size=64)


class Embed(Frozen):
    """Images to unit-norm embeddings."""

    flip: bool = True
    """Average each embedding with that of the mirrored image."""
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field((1.0,), min_length=1)
    """Average over the input resized by each of these (VehicleNet: 1, 0.9 and 0.8)."""
    crop: Crop | None = None
    """Average with the object found in the image by `models.detector`; `{}` takes the defaults."""
    ensemble: tuple[str, ...] = ()
    """Further models, whose embeddings are put beside the trained one's: run directories or
    packages."""
    camera_model: str | None = None
    """Run directory or package of a model trained with `train.target: camera`; what it makes of
    the images becomes the column `camera_embedding`, for the step `camera_verification`."""
    stage: StageSpec = StageSpec(actors=2, batch_size=128)


class Evaluate(Frozen):
    """Embeddings to metrics, pictures and the report."""

    protocol: Literal[
        "market",
        "track",
        "image_to_track",
        "clothes",
        "clothes_changing",
        "ccvid",
        "prcc",
        "prcc_single_shot",
        "vc_clothes",
        "vehicleid",
        "vehicleid_inverse",
        "cuhk03_classic",
    ] = "market"
    """Which images ask, which answer and which are junk; see `protocols`."""
    average_precision: Literal["rectangle", "trapezoid"] = "rectangle"
    """Mean of the precisions at the true matches, or that of the Market-1501 authors' code."""
    both_directions: bool = False
    """Also search the queries with the gallery, and report the mean of both directions; for the
    protocol `market` alone."""
    postprocess: tuple[Step, ...] = ()
    """What is done to the rankings of the trained model before they are scored, in this order; see
    docs/postprocessing.md."""
    open_set: OpenSet | None = OpenSet()
    """Thresholds for match, possible and unknown at these false-match rates; null makes none."""
    num_ranked: int = Field(8, ge=1, le=100)
    """Queries in the ranked-list picture."""
    top_k: int = Field(8, ge=1, le=100)
    """Gallery images beside each of them."""
    num_maps: int = Field(6, ge=0)
    """Images in the activation-map picture."""
    max_tsne: int = Field(600, ge=0)
    """Images in the t-SNE picture; 0 leaves it out."""

    @model_validator(mode="after")
    def _directions(self) -> "Evaluate":
        if self.both_directions and self.protocol != "market":
            raise ValueError(
                f"both_directions goes with the protocol 'market', not with {self.protocol!r}"
            )
        return self

    @model_validator(mode="after")
    def _steps_follow(self) -> "Evaluate":
        check_order(self.postprocess)
        return self


class Index(Frozen):
    """Gallery embeddings to a searchable index."""

    splits: tuple[Literal["query", "gallery"], ...] = Field(("gallery",), min_length=1)
    """Which of the embedded images can be found."""
    kind: Literal["flat", "ivf", "hnsw"] = "flat"
    """Search all vectors, lists of similar ones, or a graph; the latter two are approximate."""
    nlist: int | None = Field(None, ge=1)
    """Lists of the kind `ivf`; null takes a quarter of the root of the rows."""
    nprobe: int | None = Field(None, ge=1)
    """Lists that a search looks into; null takes half of them."""
    num_links: int = Field(32, ge=2, le=128)
    """Links of each vector in the graph of the kind `hnsw`, its M."""
    ef_search: int = Field(128, ge=1)
    """Candidates that a search in that graph keeps, its efSearch."""

    @model_validator(mode="after")
    def _of_kind(self) -> "Index":
        owner = {"nlist": "ivf", "nprobe": "ivf", "num_links": "hnsw", "ef_search": "hnsw"}
        for name in sorted(self.model_fields_set & owner.keys()):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.kind != owner[name]:
                raise ValueError(f"{name} goes with the kind {owner[name]!r}, not {self.kind!r}")
        if self.nlist is not None and self.nprobe is not None and self.nprobe > self.nlist:
            raise ValueError(f"nprobe is {self.nprobe}, more than the {self.nlist} of nlist")
        return self


class Dressers(Frozen):
    """What makes variants of queries for the HTTP server, apart from what searches."""

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    """Of one replica, which dresses one query at a time."""
    max_queued: int = Field(16, ge=1)
    """Queries that may wait for one; more are refused at once."""
    timeout_s: float = Field(60.0, gt=0)
    """Longest time from asking to the variants of a query."""


class Serve(Frozen):
    """The HTTP server; it changes no result."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    max_upload_mb: float = Field(10.0, gt=0)
    dressers: Dressers | None = Dressers()
    """Of a run with the section `refine`; null serves it without."""


class Recipe(Frozen):
    """One experiment, whole."""

    name: str
    profile: str = "none"
    """Which set of overrides made this recipe."""
    seed: int = Field(0, ge=0)
    resources: Resources = Resources()
    models: Models = Models()
    ingest: Ingest = Ingest()
    prompts: Prompts = Prompts()
    adapt: Adapt = Adapt()
    describe: Describe = Describe()
    outfits: Outfits = Outfits()
    guidance: Guidance = Guidance()
    generate: Generate = Generate()
    filters: tuple[FilterSpec, ...] = ()
    frechet: Frechet = Frechet()
    train: Train = Train()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    refine: Refine | None = None
    """Answers to a query in several clothes; null gives that to the query alone."""
    index: Index = Index()
    compare: Compare = Compare()
    serve: Serve = Serve()

    @model_validator(mode="after")
    def _cameras_can_be_told(self) -> "Recipe":
        for step in self.evaluate.postprocess:
            if (
                step.name == "camera_verification"
                and step.kind != "label"
                and self.embed.camera_model is None
            ):
                raise ValueError(
                    f"evaluate.postprocess: camera_verification of kind {step.kind!r} needs "
                    "embed.camera_model; set it, or the kind to 'label'"
                )
        return self

    @model_validator(mode="after")
    def _refined_as_they_are(self) -> "Recipe":
        if self.refine is None:
            return self
        spec = self.evaluate
        if spec.postprocess:
            names = [step.name for step in spec.postprocess]
            raise ValueError(f"refine ranks by itself: evaluate.postprocess must not hold {names}")
        if spec.both_directions or spec.protocol in RANDOM_QUERIES:
            what = "both_directions" if spec.both_directions else f"protocol {spec.protocol!r}"
            raise ValueError(
                f"refine needs queries of the split 'query', but evaluate.{what} asks with gallery "
                "images too"
            )
        return self


def load(recipe: str, profile: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, apply a profile, then `key.path=value` overrides in order.

    Raises:
        ValueError: If the recipe, the profile or a key is unknown, or a value breaks a rule.
    """
    values = _find(recipe)
    profiles = _profiles(recipe, values.pop("profiles", {}))
    if profile is None:
        profile = next(iter(profiles), None)
    elif profile not in profiles:
        raise ValueError(f"unknown profile {profile!r} of {recipe!r}; choose from {list(profiles)}")
    for key, value in (profiles.get(profile or "") or {}).items():
        keys.assign(values, key, value)
    for key, value in assignments(overrides):
        keys.assign(values, key, value)
    return validate(values | ({"profile": profile} if profile else {}))


def assignments(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Read `key.path=value` overrides in order, the values as YAML.

    Raises:
        ValueError: If one is not of that form.
    """
    found = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override!r} is not of the form key.path=value")
        found.append((key, _parse(key, text)))
    return found


def validate(values: Mapping[str, Any]) -> Recipe:
    """Check a resolved recipe; the first broken rule is the message.

    Raises:
        ValueError: Names the key, the value, the rule and, for an unknown key, the choices.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ValueError(keys.sentence(error, Recipe)) from error


def source(root: Path, reader: str, options: Sequence[str] = ()) -> Source:
    """One source by the name of its reader, with `option=value` as in a recipe.

    Raises:
        ValueError: If the reader or an option is unknown, or a value breaks a rule.
    """
    values: dict[str, Any] = {"reader": reader, "root": str(root)}
    for option in options:
        key, found, text = option.partition("=")
        if not found:
            raise ValueError(f"--set {option!r} must be option=value")
        values[key] = _parse(key, text)
    return validate({"name": "one", "ingest": {"sources": [values]}}).ingest.sources[0]


def override(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Change a resolved recipe by dotted keys, as a profile changes the one in a file.

    Raises:
        ValueError: If a key is unknown or a value breaks a rule.
    """
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        keys.assign(values, key, value)
    return validate(values)


def dump(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML; loading it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def _profiles(recipe: str, profiles: Any) -> dict[str, dict[str, Any] | None]:
    try:
        return TypeAdapter(dict[str, dict[str, Any] | None]).validate_python(profiles or {})
    except ValidationError as error:
        rule = f"profiles of {recipe!r} must map names to overrides like train.epochs: 3"
        raise ValueError(rule) from error


def _find(recipe: str) -> dict[str, Any]:
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ValueError(f"unknown recipe {recipe!r}; choose from {names} or give a .yaml file")
    return read_yaml(path)


def read_yaml(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """Read a recipe file as it is written, or a file of another `kind`.

    Raises:
        ValueError: If it is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{kind} {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{kind} {path} must be a mapping of sections, not {type(values).__name__}"
        )
    return values


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {key}: {text!r} is not a YAML value") from error
