"""References to pretrained models: where they lie, what they are, how a wrong one is refused."""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from pickle import UnpicklingError
from queue import Empty, SimpleQueue
from threading import Thread

import torch
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError

from ray_reid.models.pretrained.weight_files import first_line
from ray_reid.runtime import arguments

log = logging.getLogger(__name__)

MINIATURE = "miniature:"
PACKAGE = "package:"
"""Begins the name of an installed Python package that carries weights."""
HUB = "hf-hub:"
"""Begins the hub ids of open_clip."""
HUB_SECONDS = 6.0
"""How long the hub may take to answer, whatever it is that takes the time."""
WITHOUT_NETWORK = "without a network, give a local folder, or fetch the model into the hub's cache"
PATHS = ("/", "./", "../", "~")
"""How a reference begins that can be nothing but a place on this machine."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
WEIGHTS = Path(__file__).resolve().parent.parent.parent / "miniature" / "weights"


CACHED = (
    "model_index.json", "config.json", "open_clip_config.json", "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
"""Files of which the hub's cache holds one if it holds a model."""


class UnfitReferenceError(ValueError):
    """A reference is refused with a whole sentence; nothing needs to be said of its loading."""


class HubSilentError(Exception):
    """The hub does not answer."""


def resolve(reference: str) -> str:
    """The local file or folder of a reference, or the hub id as it is.

    Raises:
        UnfitReferenceError: If a miniature model, a package or a place is named that does not
            exist.
    """
    if reference.startswith(PACKAGE):
        return str(_in_package(reference))
    if reference.startswith(MINIATURE):
        name = reference.removeprefix(MINIATURE)
        names = sorted(path.name for path in WEIGHTS.iterdir() if path.is_dir())
        if name not in names:
            raise UnfitReferenceError(
                f"unknown model {reference!r}; choose from {[MINIATURE + n for n in names]}"
            )
        return str(WEIGHTS / name)
    path = arguments.expanded(reference)
    if path.exists():
        return str(path.resolve())
    is_path = reference.startswith(PATHS) or reference.count("/") > 1
    # The hub has folders only.
    if is_path or reference.endswith(WEIGHT_FILES):
        raise UnfitReferenceError(
            f"model {reference!r} is not there; give a local path or a hub id"
        )
    return reference


def check_local(reference: str) -> None:
    """Refuse what can only be on this machine and is not; what a hub may have passes.

    Raises:
        UnfitReferenceError: If a miniature model, a package or a place is named that does not
            exist.
    """
    if reference.startswith((MINIATURE, PACKAGE, *PATHS)):
        resolve(reference)


def _in_package(reference: str) -> Path:
    """The one file of weights that an installed package carries, or what is named inside it."""
    name, _, inside = reference.removeprefix(PACKAGE).partition("/")
    try:
        carrier = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise UnfitReferenceError(
            f"model {reference!r} needs the Python package {name!r}, which is not installed here: "
            f"`pip install {name}`"
        ) from error
    files = [file for file in carrier.files or () if file.suffix in WEIGHT_FILES]
    if not inside and len(files) == 1:
        return Path(str(carrier.locate_file(files[0]))).resolve()
    found = Path(str(carrier.locate_file(inside)))
    if not inside or not found.exists():
        raise UnfitReferenceError(
            f"model {reference!r} must name one file or folder of the package; its files of "
            f"weights are {[f'{PACKAGE}{name}/{file}' for file in files]}"
        )
    return found.resolve()


@contextmanager
def refusing(key: str, reference: str) -> Iterator[None]:
    """Turn what loaders raise for a wrong or unreachable model into one sentence.

    Args:
        key: Of the recipe, which names the model.

    Raises:
        ValueError: In place of whatever the loader raised.
    """
    try:
        yield
    except UnfitReferenceError as error:
        named = "" if repr(reference) in str(error) else f" {reference!r}"
        raise ValueError(f"{key}{named}: {error}") from error
    except (EOFError, UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"{key} {reference!r} cannot be loaded: its file of weights is incomplete, or holds "
            "something else"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
        where = "" if local(reference) is not None else (
            f"; it is no local folder, so it was looked for on the hub: {WITHOUT_NETWORK}"
        )  # fmt: skip
        raise ValueError(f"{key} {reference!r} cannot be loaded: {_said(error)}{where}") from error


def _said(error: BaseException) -> str:
    """The first line of an error; one of the system may say nothing but the name of a file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror or type(error).__name__}: {error.filename}"
    return first_line(error)


def local(reference: str) -> Path | None:
    """Return the file or folder of this machine that a reference names; None for a hub id.

    Of `NAME/FILE` of open_clip it is the file with the weights.

    Raises:
        UnfitReferenceError: See `resolve`.
    """
    listed = not reference.startswith((MINIATURE, PACKAGE, HUB))
    weights = Path(reference.partition("/")[2])
    if listed and weights.is_file() and not arguments.expanded(reference).exists():
        return weights
    found = Path(resolve(reference))
    return found if found.exists() else None


def locate(reference: str) -> str:
    """The local folder of a reference, or a hub id that the cache or the hub gives.

    Raises:
        UnfitReferenceError: See `resolve` and `knock`.
    """
    found = resolve(reference)
    knock(found)
    return found


def knock(found: str) -> None:
    """Ask the hub once for a model that does not lie here: loaders ask for minutes.

    A model in the hub's cache is taken from there by the rest of this process if the hub does not
    answer.

    Args:
        found: What `resolve` gave.

    Raises:
        UnfitReferenceError: If the model is not in the cache, and the hub does not give it.
    """
    if Path(found).exists():
        return
    cached = _cached(found) is not None
    if constants.HF_HUB_OFFLINE:
        if not cached:
            raise UnfitReferenceError(
                "it is neither a local folder nor in the hub's cache on this machine, and the hub "
                "is not asked, because HF_HUB_OFFLINE is set or the hub did not answer before; "
                f"{WITHOUT_NETWORK}"
            )
        return
    try:
        given = _ask(found) is not None
    except HubSilentError as error:
        if not cached:
            raise UnfitReferenceError(
                f"it is no local folder, and {error}; {WITHOUT_NETWORK}"
            ) from error
        log.warning("%s is taken from the hub's cache, because %s", found, error)
        constants.HF_HUB_OFFLINE = True
        return
    if not given and not cached:
        raise UnfitReferenceError(
            "it is no local folder, and the hub has no such model, or not for this user; give a "
            "local folder or another hub id, or log in with 'hf auth login'"
        )


@lru_cache
def _ask(hub_id: str) -> str | None:
    """The commit that the hub gives; null if it answers that it gives none.

    Each model is asked for once in a process, however many roles and settings of a sweep name it.

    Raises:
        HubSilentError: If it does not answer.
    """
    answers: SimpleQueue[str | Exception | None] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(HfApi().model_info(hub_id, timeout=HUB_SECONDS).sha)
        except HfHubHTTPError:
            answers.put(None)
        # Of the HTTP library that the client uses, which changes with its version.
        except Exception as error:  # noqa: BLE001
            answers.put(error)

    # Its own limit is one of each address, and none of looking these up.
    Thread(target=ask, daemon=True).start()
    try:
        found = answers.get(timeout=HUB_SECONDS)
    except Empty:
        found = TimeoutError(f"nothing within {HUB_SECONDS:g} s")
    if isinstance(found, Exception):
        raise HubSilentError(f"the hub does not answer ({found})") from found
    return found


def _cached(hub_id: str) -> str | None:
    """A file of a model in the hub's cache on this machine."""
    for name in CACHED:
        cached = try_to_load_from_cache(hub_id, name)
        if isinstance(cached, str):
            return cached
    return None


def fingerprint(reference: str) -> str:
    """Name a model by its content: a digest of a local one, the commit of a hub id.

    `unknown` is what neither this machine's cache nor the hub knows.
    """
    found = local(reference)
    if found is not None and found.is_dir():
        return digest(sorted(file for file in found.rglob("*") if file.is_file()), found)
    if found is not None:
        return digest([found], found.parent)
    hub_id = reference.removeprefix(HUB)
    cached = _cached(hub_id)
    return _commit_on_hub(hub_id) if cached is None else Path(cached).parent.name[:12]


@lru_cache
def _commit_on_hub(hub_id: str) -> str:
    """A model's name must be the same before and after it is fetched."""
    if constants.HF_HUB_OFFLINE:
        return "unknown"
    try:
        commit = _ask(hub_id)
    except HubSilentError as error:
        # Whoever loads the model says so; it may lie in the caches of other machines.
        log.debug("%s: %s", hub_id, error)
        return "unknown"
    return (commit or "unknown")[:12]


def digest(files: list[Path], root: Path) -> str:
    """Hash names and contents of files: 12 hexadecimal digits."""
    total = hashlib.blake2b(digest_size=6)
    for file in files:
        total.update(file.relative_to(root).as_posix().encode())
        with file.open("rb") as opened:
            while part := opened.read(1 << 20):
                total.update(part)
    return total.hexdigest()


def device() -> torch.device:
    """The GPU of this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype(precision: str) -> torch.dtype:
    """Number type of a model's weights; `auto` is bf16 on a GPU and fp32 on a CPU."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision in named:
        return named[precision]
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def quiet() -> None:
    """Keep the model libraries' bars and advice off the terminal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
