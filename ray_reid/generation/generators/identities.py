"""The stage that fine-tunes a model to an identity and generates its images (Diffusion-ReID, 3.1).

A call is one identity. Whatever goes wrong with it ends neither the actor nor the job.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from ray_reid import images, places, schema, storage
from ray_reid.generation.generators.settings import UNSAFE
from ray_reid.images import Pixels
from ray_reid.recipe.personalise import Personalise
from ray_reid.schema import Batch

INSTANCES = "instances"
"""Numbers of an identity's images in the cache of the table, in the order of the ids."""
REFERENCE = "reference_prompt"
"""Prompt whose references an identity uses; empty where it uses none."""
TUNING, GENERATING, RESTORING = "tuning_seconds", "generating_seconds", "restoring_seconds"
"""What the actor took: of an identity, spread evenly over its rows."""
ATTEMPTS = "attempts"
FAILED = "personalise"
"""Begins the `drop_reason` of an identity that could not be tuned to."""
KEPT_SETS = 4
"""Sets of references whose latents an actor remembers: a plan puts identities of one side by
side."""


class IdentityError(Exception):
    """Why an identity has no images; `again` says whether smaller batches may help."""

    def __init__(self, reason: str, again: bool) -> None:
        """Say why."""
        super().__init__(reason)
        self.again = again


class GenerateIdentity:
    """Replace a block of plan rows, one identity, by its images as packed `pixels`."""

    def __init__(
        self,
        table: str,
        references: str | None,
        model: str,
        precision: str,
        spec: Personalise,
        settings: Mapping[str, Any],
        adapters: str | None = None,
        token: tuple[str, str] | None = None,
    ) -> None:
        """Load the model once per actor; it is never read again.

        Args:
            table: Folder of the table with the real images.
            references: Folder of the table of references, if there is one.
            model: Of `models.text_to_image`.
            precision: Of the recipe.
            spec: Section of the recipe.
            settings: Of the pipeline, see `settings.pipeline_settings`.
            adapters: Folder for the adapters, if they are kept.
            token: Of the identities, if the tokenizer does not know it; see `IdentityTuner`.
        """
        from ray_reid.generation.personal_tuning import IdentityTuner
        from ray_reid.models.pretrained import references as models
        from ray_reid.models.pretrained.text_to_image import load_pipeline

        self.cache = storage.RowCache(table, places.node_cache(), storage.REAL)
        self.references = None if references is None else places.place(references)
        self.adapters = None if adapters is None else places.place(adapters)
        self.spec, self.settings = spec, dict(settings)
        pipeline = load_pipeline(model, "fp32")
        size = self.settings["image_size"]
        self.tuner = IdentityTuner(pipeline, spec, size, models.dtype(precision), token)
        self.latents: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Restore, fine-tune, generate; drop all rows with the reason if that is impossible."""
        clock = Clock()
        made: list[Pixels | None] = []
        failure: str | None = None
        attempts = 0
        for divisor in (1, 2):
            attempts += 1
            failure = None
            try:
                made = self._make(batch, divisor, clock)
                break
            except IdentityError as error:
                failure = f"{FAILED}: {error}"
                if not error.again:
                    break
        rows = len(batch[schema.PROMPT])
        return {
            **_filled(batch, made, failure, self.spec.output_size),
            ATTEMPTS: np.full(rows, attempts),
            **clock.columns(rows),
        }

    def _make(self, batch: Batch, divisor: int, clock: "Clock") -> list[Pixels | None]:
        """The images of one identity, in batches that are smaller by a divisor.

        Raises:
            IdentityError: If there are none.
        """
        import torch

        from ray_reid.generation.personal_tuning import Subject, UntunableError

        spec, tuner = self.spec, self.tuner
        identity, prompt = str(batch[schema.IDENTITY][0]), str(batch[schema.PROMPT][0])
        seed = int(schema.observation_id(identity, prompt)[:15], 16)
        in_memory = spec.batch_size * (1 if self.references is None else 2)
        micro_batch = spec.micro_batch or in_memory
        try:
            with clock.of(RESTORING):
                tuner.restore(seed)
            with clock.of(TUNING):
                pixels = self._instances(list(batch[INSTANCES][0]))
                reference = str(batch[REFERENCE][0])
                known = self._references(reference) if reference else None
                subject = Subject(tuner.encode(pixels), prompt, known, reference)
                tuner.tune(subject, seed, max(1, micro_batch // divisor))
            with clock.of(GENERATING):
                at_once = max(1, spec.stage.batch_size // divisor)
                seeds = [int(one) for one in batch[schema.SEED]]
                made = tuner.generate(list(batch[schema.PROMPT]), seeds, self.settings, at_once)
        except UntunableError as error:
            raise IdentityError(str(error), again=True) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            # The error's frames hold what filled the memory.
            error.__traceback__ = None
            torch.cuda.empty_cache()
            reason = f"out of memory with {micro_batch // divisor or 1} images at once"
            raise IdentityError(reason, again=True) from None
        if self.adapters is not None:
            with places.written(self.adapters / adapter_name(identity)) as folder:
                tuner.save(folder)
        return made

    def _instances(self, rows: list[int]) -> list[Pixels]:
        found, first = [], ""
        for row in rows:
            try:
                found.append(images.decode(self.cache.image(int(row))))
            except ValueError as error:
                first = first or f", the first because {error}"
        if not found:
            reason = f"none of its {len(rows)} images can be used{first}"
            raise IdentityError(reason, again=False)
        return found

    def _references(self, prompt: str) -> Any:
        """Latents of the references of a prompt; those of the last few are remembered."""
        assert self.references is not None
        if prompt not in self.latents:
            columns = [schema.IMAGE]
            where = pc.field(schema.PROMPT) == prompt
            rows = storage.read(self.references, columns, where)[schema.IMAGE].to_pylist()
            if not rows:
                raise IdentityError(f"the model refused all references of {prompt!r}", again=False)
            self.latents[prompt] = self.tuner.encode([images.decode(one) for one in rows])
            while len(self.latents) > KEPT_SETS:
                self.latents.popitem(last=False)
        self.latents.move_to_end(prompt)
        return self.latents[prompt]


class Clock:
    """Seconds of the parts of one identity."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.seconds = dict.fromkeys((TUNING, GENERATING, RESTORING), 0.0)
        self._part, self._since = "", 0.0

    def of(self, part: str) -> "Clock":
        """Count a `with` block as this part."""
        self._part = part
        return self

    def __enter__(self) -> None:
        """Start."""
        self._since = time.perf_counter()

    def __exit__(self, *raised: object) -> None:
        """Stop."""
        self.seconds[self._part] += time.perf_counter() - self._since

    def columns(self, rows: int) -> dict[str, NDArray[np.float64]]:
        """Each part as a column, spread evenly over the rows."""
        return {part: np.full(rows, taken / rows) for part, taken in self.seconds.items()}


def adapter_name(identity: str) -> str:
    """The folder of an identity's adapter: its name as far as files allow, and a hash of it."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", identity)
    return f"{plain}-{schema.observation_id(identity)[:8]}"


def _filled(
    batch: Batch, made: list[Pixels | None], failure: str | None, size: tuple[int, int]
) -> dict[str, NDArray[Any]]:
    """The rows of the record with pixels of the size of the table, black where there are none."""
    rows = len(batch[schema.PROMPT])
    height, width = size
    pixels, reason = np.empty(rows, dtype=object), np.empty(rows, dtype=object)
    for row in range(rows):
        image = None if failure is not None else made[row]
        if image is None:
            image = np.zeros((1, 1, 3), np.uint8)
            reason[row] = failure or UNSAFE
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        pixels[row] = images.pack(np.asarray(resized))
    kept = {name: batch[name] for name in schema.OBSERVATION.names}
    return {**kept, schema.PIXELS: pixels, schema.DROP_REASON: reason}


def encode(batch: Batch, quality: int) -> dict[str, NDArray[Any]]:
    """Turn the packed pixels into the JPEG `image` of a record, and keep what it took."""
    encoded = np.empty(len(batch[schema.PIXELS]), dtype=object)
    encoded[:] = [images.encode(images.unpack(packed), quality) for packed in batch[schema.PIXELS]]
    filled = {**batch, schema.IMAGE: encoded}
    names = (*schema.OBSERVATION.names, ATTEMPTS, TUNING, GENERATING, RESTORING)
    return {name: filled[name] for name in names}
