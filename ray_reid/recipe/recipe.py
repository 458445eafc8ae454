"""A recipe: every section, and the rules that span them."""

from pydantic import Field, model_validator

from ray_reid.recipe.adapt import Adapt
from ray_reid.recipe.base import Frozen
from ray_reid.recipe.compare import Compare
from ray_reid.recipe.describe import Describe
from ray_reid.recipe.embed import Embed
from ray_reid.recipe.enhance import Enhance
from ray_reid.recipe.evaluate import RANDOM_QUERIES, Evaluate
from ray_reid.recipe.filters import FilterSpec
from ray_reid.recipe.frechet import Frechet
from ray_reid.recipe.gallery import LiveGallery
from ray_reid.recipe.generate import Generate
from ray_reid.recipe.guidance import Guidance
from ray_reid.recipe.index import Index
from ray_reid.recipe.ingest import Ingest
from ray_reid.recipe.models import Models
from ray_reid.recipe.outfits import Outfits
from ray_reid.recipe.personalise import Personalise
from ray_reid.recipe.prompts import Prompts
from ray_reid.recipe.refine import Refine
from ray_reid.recipe.resources import Resources
from ray_reid.recipe.serve import Serve
from ray_reid.recipe.teachers import Teachers
from ray_reid.recipe.train import Train

PRETRAIN = "pretrain"
"""The job and the section of a pre-training, and what `train.start` calls its result."""


class Recipe(Frozen):
    """One experiment, whole."""

    name: str
    profile: str = "none"
    """Which set of overrides made this recipe."""
    seed: int = Field(0, ge=0)
    package: str | None = None
    """A model package to score instead of training one; the section `train` is then that of the
    package. `ray-reid evaluate` writes such recipes."""
    resources: Resources = Resources()
    models: Models = Models()
    ingest: Ingest = Ingest()
    prompts: Prompts = Prompts()
    adapt: Adapt = Adapt()
    describe: Describe = Describe()
    enhance: Enhance = Enhance()
    outfits: Outfits = Outfits()
    guidance: Guidance = Guidance()
    personalise: Personalise = Personalise()
    generate: Generate = Generate()
    teachers: Teachers = Teachers()
    filters: tuple[FilterSpec, ...] = ()
    frechet: Frechet = Frechet()
    pretrain: Train | None = None
    """A training before that of `train`, on generated images where its `mixing` is `synthetic`;
    `train.start: pretrain` begins with its result. Null has none."""
    train: Train = Train()
    embed: Embed = Embed()
    evaluate: Evaluate = Evaluate()
    refine: Refine | None = None
    """Answers to a query in several clothes; null gives that to the query alone."""
    index: Index = Index()
    gallery: LiveGallery = LiveGallery()
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
        if spec.by_source:
            raise ValueError(
                "refine searches all queries in one gallery: evaluate.by_source must be false"
            )
        if spec.both_directions or spec.protocol in RANDOM_QUERIES:
            what = "both_directions" if spec.both_directions else f"protocol {spec.protocol!r}"
            raise ValueError(
                f"refine needs queries of the split 'query', but evaluate.{what} asks with gallery "
                "images too"
            )
        return self
