"""Stateless randomness: every random number is a pure function of (seed, epoch, sample, view).

Only :meth:`numpy.random.Generator.random` is used on these generators, here and by callers: it maps the raw 64-bit stream of the bit generator, which
NumPy guarantees across versions, to a double by one shift. Distribution methods may change between NumPy versions and would change results.
"""

from __future__ import annotations

import hashlib
import json
from statistics import NormalDist

import numpy as np

_UNIT_NORMAL = NormalDist()


def generator(seed: int, epoch: int, sample_id: str, view: str) -> np.random.Generator:
    """A counter-based generator (Philox 4x64, Salmon et al., SC 2011) keyed by a BLAKE2b hash of its arguments.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        sample_id: Identity of the sample; not its position, so that adding a file leaves the draws of the others alone.
        view: What the numbers are for.
    """
    text = json.dumps([int(seed), int(epoch), sample_id, view])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))


def seed_for(seed: int, purpose: str) -> int:
    """A seed for the generator of another library, for work that is not about one image; each purpose has its own stream.

    Args:
        seed: Seed of the run.
        purpose: What the numbers are for.
    """
    return int(generator(seed, 0, "", purpose).random() * 2**53)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """One number from U[low, high)."""
    return low + (high - low) * rng.random()


def below(rng: np.random.Generator, count: int) -> int:
    """One integer from 0 to ``count - 1``, uniform to within 2^-53."""
    return int(rng.random() * count)


def coin(rng: np.random.Generator, probability: float = 0.5) -> bool:
    """Whether an event of this probability happens."""
    return bool(rng.random() < probability)


def normal(rng: np.random.Generator, mean: float, std: float) -> float:
    """One number from N(mean, std^2), by inversion of one uniform number."""
    # random() can return 0, where the inverse is minus infinity.
    return mean + std * _UNIT_NORMAL.inv_cdf(max(rng.random(), 2.0**-54))


def permutation(rng: np.random.Generator, count: int) -> np.ndarray:
    """A random order of ``count`` positions, (count,), int64."""
    return np.argsort(rng.random(count), kind="stable").astype(np.int64)
