"""The counter-based random generator: every draw is a pure function of (seed, stream, epoch, step, position, draw).

Nothing here has state, so a batch, its pixels and its pairs are the same for every world size, worker and resume.
The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), written out over
numpy arrays because numpy's own Philox gives one sequence per object, and a batch asks thousands of short ones.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10


class Stream(IntEnum):
    """What a draw is for. The numbers are part of every run's identity: add, never renumber."""

    IDENTITIES = 1
    IMAGES = 2
    CROP = 3
    FLIP = 4
    ERASE = 5
    CHANNEL = 6
    PAIRS_LAYER3 = 7
    PAIRS_LAYER4 = 8
    SPLIT = 9
    SYNTH = 10
    RANKED_LISTS = 11


def philox(counter: tuple, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox4x32-10: four counter words and two key words below 2**32, to four uint64 arrays of 32 bits."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _MASK,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(
    stream: Stream, seed: int, epoch: int, step: int, position: ArrayLike = 0, draw: ArrayLike = 0
) -> np.ndarray:
    """Uniform float64 in [0, 1), 53 bits, of the broadcast shape of `position` and `draw`.

    `position` is the place in the global batch (or the identity, or whatever the stream counts), `draw` counts the
    draws and redraws made for it. All numbers are in [0, 2**32). Source: ours (method §1).
    """
    high, low, _, _ = philox((draw, position, step, epoch), (int(seed), int(stream)))
    return ((high >> np.uint64(5)) * 67108864.0 + (low >> np.uint64(6))) / 9007199254740992.0


def integers(
    limit: ArrayLike, stream: Stream, seed: int, epoch: int, step: int, position: ArrayLike = 0, draw: ArrayLike = 0
) -> np.ndarray:
    """Uniform int64 in [0, limit), limit < 2**32 (a number or an array that broadcasts). Arguments as `uniform`."""
    return np.floor(uniform(stream, seed, epoch, step, position, draw) * np.asarray(limit)).astype(np.int64)


def permutation(size: int, stream: Stream, seed: int, epoch: int, step: int, position: int = 0) -> np.ndarray:
    """A random order of range(size), int64: the argsort of one uniform per element. Arguments as `uniform`."""
    keys = uniform(stream, seed, epoch, step, position, np.arange(size))
    return np.argsort(keys, kind="stable")
