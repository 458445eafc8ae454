"""Better re-identification from generated data, on a Ray cluster."""

from typing import TYPE_CHECKING, Any

from ray_reid.runtime import version

if TYPE_CHECKING:
    from ray_reid.models.package import load as load
    from ray_reid.pipelines import score as evaluate

__version__ = version.VERSION
__all__ = ["__version__", "evaluate", "load"]


def __getattr__(name: str) -> Any:
    # They pull in torch; `ray-reid --help` must not wait for it.
    if name == "load":
        from ray_reid.models.package import load

        return load
    if name == "evaluate":
        from ray_reid.pipelines import score

        return score
    raise AttributeError(f"module 'ray_reid' has no attribute {name!r}")
