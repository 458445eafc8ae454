"""Better re-identification from generated data, on a Ray cluster."""

from typing import TYPE_CHECKING, Any

from ray_reid.runtime import version

if TYPE_CHECKING:
    from ray_reid.models.package import load as load

__version__ = version.VERSION
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # `ray_reid.load` pulls in torch; `ray-reid --help` must not wait for it.
    if name == "load":
        from ray_reid.models.package import load

        return load
    raise AttributeError(f"module 'ray_reid' has no attribute {name!r}")
