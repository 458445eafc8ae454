"""Confidence intervals of a gain in mAP, over the queries and over the seeds of the trainings.

Queries are resampled with replacement (Efron, 1979). Seeds are not: there are three of them as a
rule, a resample of three never leaves their range, and that range holds the true mean in three
cases of four. In each resample of the queries the mean over the seeds is drawn from Student's
distribution about the mean of the seeds, with their own deviation, which covers as it says.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES, LEVEL = 10_000, 0.95
# Weights of queries in memory at a time, 32 MB.
BLOCK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean over queries and seeds, and the interval that it lies in."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        """Return it in another unit; `factor` is above 0."""
        return Interval(factor * self.mean, factor * self.low, factor * self.high)


@dataclass(frozen=True, eq=False)
class Resampled:
    """Mean average precisions of some arms, on the queries as they are and on resampled ones."""

    means: Array
    """(A, S) of each arm and seed; NaN where the arm has no such training."""
    resampled: Array
    """(B, A, S) the same of each resample; all arms and seeds are asked the same queries."""
    seed: int

    def gain(self, arm: int, over: int | None = None, level: float = LEVEL) -> Interval:
        """Return how far an arm is above another one, seed by seed, or above zero.

        Of one seed the interval is that of the queries alone: it says nothing of other seeds.

        Raises:
            ValueError: If the arms have no seed in common.
        """
        means, resampled = self.means[arm], self.resampled[:, arm]
        if over is not None:
            means, resampled = means - self.means[over], resampled - self.resampled[:, over]
        there = np.isfinite(means)
        count = int(there.sum())
        if not count:
            raise ValueError(f"arms {arm} and {over} have no seed in common")
        drawn = resampled[:, there].mean(axis=1)
        if count > 1:
            error = resampled[:, there].std(axis=1, ddof=1) / np.sqrt(count)
            # The same draws for every pair of arms.
            rng = np.random.default_rng([self.seed, count])
            drawn = drawn + rng.standard_t(count - 1, len(drawn)) * error
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(means[there].mean()), float(low), float(high))

    def lower_bounds(self, arms: Sequence[int], level: float = LEVEL) -> Array:
        """(N, N) lower bound of the gain of each arm (column) over each earlier one (row)."""
        bounds = np.full((len(arms), len(arms)), -np.inf)
        for row, column in itertools.combinations(range(len(arms)), 2):
            bounds[row, column] = self.gain(arms[column], arms[row], level).low
        return bounds


def resample(ap: Array, num_resamples: int = RESAMPLES, seed: int = 0) -> Resampled:
    """Resample the queries of some arms.

    Args:
        ap: (A, S, Q) average precision of each arm, seed and query. A query is NaN in all trainings
            or in none; a training that there is not is NaN for all queries.
        num_resamples: B.
        seed: Of the random numbers.

    Raises:
        ValueError: If the shape is another one, a query is scored in some trainings only, or
            nothing is scored.
    """
    if ap.ndim != 3 or 0 in ap.shape:
        raise ValueError(f"ap has the shape {ap.shape}; it must be (arms, seeds, queries)")
    scored = np.isfinite(ap)
    there = scored.any(axis=2)
    counted = scored[there].all(axis=0)
    if not there.any() or not np.array_equal(counted, scored[there].any(axis=0)):
        raise ValueError("every training must score the same queries, at least one")
    num_arms, num_seeds, _ = ap.shape
    values = ap[:, :, counted].reshape(num_arms * num_seeds, -1)
    num_queries = values.shape[1]
    rng = np.random.default_rng(seed)
    even = np.full(num_queries, 1 / num_queries)
    rows = max(1, BLOCK // num_queries)
    blocks = [
        rng.multinomial(num_queries, even, min(rows, num_resamples - start)) @ values.T
        for start in range(0, num_resamples, rows)
    ]
    resampled = np.concatenate(blocks).reshape(num_resamples, num_arms, num_seeds) / num_queries
    means = values.mean(axis=1).reshape(num_arms, num_seeds)
    return Resampled(means, resampled, seed)


def stop_at(low: Array) -> int:
    """Choose among growing amounts of something that may be worth its price: where to stop.

    An amount is of use where its gain over none lies above 0 with its whole interval. Of these
    the smallest is chosen that no larger one beats in the same sense.

    Args:
        low: (N, N) lower bound of the gain of each amount (column) over each smaller one (row), as
            `Resampled.lower_bounds` gives it; the first amount is none.

    Returns:
        The number of the amount. 0 says that no amount is shown to be of any use.
    """
    useful = [amount for amount in range(1, len(low)) if low[0, amount] > 0]
    for amount in useful:
        if not any(low[amount, more] > 0 for more in useful if more > amount):
            return amount
    return 0
