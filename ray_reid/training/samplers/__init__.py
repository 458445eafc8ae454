"""Samplers are pure functions that return a plan: which rows make which batch on which worker.

A plan is an int64 array of shape (batches, workers, rows). It is the same on every machine for
the same arguments, so training resumes at any (epoch, batch) by skipping what was done.
"""

from ray_reid.training.samplers.classes import class_balanced
from ray_reid.training.samplers.dealing import Plan
from ray_reid.training.samplers.identity import balanced, identity_balanced
from ray_reid.training.samplers.pairs import progressive_pairs
from ray_reid.training.samplers.plain import naive, source_balanced

__all__ = [
    "Plan",
    "balanced",
    "class_balanced",
    "identity_balanced",
    "naive",
    "progressive_pairs",
    "source_balanced",
]
