"""What a run keeps and no longer needs: results that are not current and that nobody reads."""

from collections.abc import Iterator
from dataclasses import dataclass

from ray_reid import places, storage
from ray_reid.places import Place
from ray_reid.runtime.holding import hold
from ray_reid.runtime.results import MANIFEST, Manifest, RunState, being_read
from ray_reid.runtime.run import KEY_DIGITS, MODELS, REFERENCES, TRAININGS, TRIALS

DONE, BEGUN, UNUSED = "not current", "unfinished", "references of no current result"


@dataclass(frozen=True)
class Leftover:
    """A result that is not current, or unfinished work on a result or a trial."""

    folder: Place
    num_bytes: int
    kind: str
    """`not current`, `unfinished`, or `references of no current result`."""


def leftovers(path: Place) -> list[Leftover]:
    """List results and unfinished work that are neither current nor opened by a live reader.

    Raises:
        ValueError: If the directory is not a run.
    """
    state = RunState.read(path)
    kept = set(state.keys.items()) | being_read(path)
    left = [folder for folder in _results(state) if (folder.parent.name, folder.name) not in kept]
    results = [
        Leftover(folder, _size(folder), DONE if (folder / MANIFEST).is_file() else BEGUN)
        for folder in [*left, *_trials(state)]
    ]
    unused = [Leftover(folder, _size(folder), UNUSED) for folder in _references(state)]
    return [*results, *unused]


def prune(path: Place) -> list[Leftover]:
    """Remove the leftovers of a run that no driver holds; returns what was removed.

    Raises:
        ValueError: If the directory is not a run, or a driver holds it.
    """
    # Before the lock, which would make a run of any directory.
    RunState.read(path)
    with hold(path) as check:
        found = leftovers(path)
        for one in found:
            check()
            # First, so that a kill leaves no result that is only half there.
            for name in (MANIFEST, storage.FILES):
                (one.folder / name).unlink(missing_ok=True)
            places.remove(one.folder)
            if not any(one.folder.parent.iterdir()):
                one.folder.parent.rmdir()
    return found


def _results(state: RunState) -> Iterator[Place]:
    """Every result of a run, and what was begun of a job of its pipeline.

    People may keep folders of their own in a run, with names that look like keys.
    """
    for folder in places.matching(state.path, f"[!.]*/{'[0-9a-f]' * KEY_DIGITS}"):
        if (folder / MANIFEST).is_file():
            manifest = Manifest.read(folder)
            if (manifest.job, manifest.key) == (folder.parent.name, folder.name):
                yield folder
        elif folder.parent.name in state.jobs and folder.is_dir():
            yield folder


def _trials(state: RunState) -> Iterator[Place]:
    """Unfinished work of trials: checkpoints of their trainings, and models not yet complete.

    No result needs them. The next sweep would resume a trial from its checkpoints.
    """
    for pattern in (f"{TRAININGS}/{'[0-9a-f]' * KEY_DIGITS}", f"{MODELS}/.*"):
        found = places.matching(state.path, f"{TRIALS}/{pattern}")
        yield from (folder for folder in found if folder.is_dir())


def _references(state: RunState) -> Iterator[Place]:
    """References that no current result was made with; `personalise` makes them again if needed."""
    used = {name for manifest in state.manifests() for name in manifest.facts.get("shared", ())}
    found = places.matching(state.path, f"{TRIALS}/{REFERENCES}/{'[0-9a-f]' * KEY_DIGITS}")
    yield from (folder for folder in found if folder.is_dir() and folder.name not in used)


def _size(folder: Place) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
