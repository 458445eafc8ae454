"""Where the recipes, sweeps and prompt libraries lie that come with the package."""

import importlib.resources
from pathlib import Path


def _folder(name: str) -> Path:
    """Find a folder of `jobs/`: package data of an installed wheel, or beside it in a checkout."""
    installed = Path(str(importlib.resources.files("ray_reid"))) / "jobs" / name
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "jobs" / name


RECIPES = _folder("recipes")
LIBRARIES = RECIPES / "prompts"
SWEEPS = _folder("sweeps")
