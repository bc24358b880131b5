"""The counter-based random generator: every draw is a pure function of (seed, stream, epoch, step, position, draw).

Nothing here has state, so a batch, its pixels and its pairs are the same for every world size, worker and resume.
The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). It is implemented
over numpy arrays here because numpy's own Philox gives one sequence per object, and a batch needs thousands of short
ones.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_ROUNDS = 10
_FEISTEL_ROUNDS = 8  # four make it a good permutation (Luby and Rackoff); small sizes need more


class Stream(IntEnum):
    """What a draw is for. The numbers determine every run's draws: add new ones, never renumber."""

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
    WINDOWS = 12
    REPORT = 13
    LANES = 14
    NEGATIVES = 15


def philox(
    counter: tuple[ArrayLike, ...], key: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Philox4x32-10: from four counter words and two key words below 2**32 to four uint64 arrays of 32 random bits."""
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
    stream: Stream, seed: int, epoch: int, step: ArrayLike, position: ArrayLike = 0, draw: ArrayLike = 0
) -> np.ndarray:
    """Uniform float64 in [0, 1), 53 bits, of the broadcast shape of `step`, `position` and `draw`.

    `position` is the position in the global batch (or the identity, or whatever the stream counts), and `draw` counts
    the draws and redraws for it. All numbers are in [0, 2**32). Source: ours (method §1).
    """
    high, low, _, _ = philox((draw, position, step, epoch), (int(seed), int(stream)))
    return ((high >> np.uint64(5)) * 67108864.0 + (low >> np.uint64(6))) / 9007199254740992.0


def integers(
    limit: ArrayLike, stream: Stream, seed: int, epoch: int, step: int, *, position: ArrayLike = 0, draw: ArrayLike = 0
) -> np.ndarray:
    """Uniform int64 in [0, limit), limit < 2**32 (a number or an array that broadcasts). Other arguments: `uniform`."""
    return np.floor(uniform(stream, seed, epoch, step, position, draw) * np.asarray(limit)).astype(np.int64)


def chosen(share: float, start: int, stop: int, stream: Stream, seed: int, epoch: int, step: int) -> np.ndarray:
    """Those of the numbers `start` to `stop` - 1 that are drawn, each with probability `share`; int64, ascending.

    Whether a number is drawn depends neither on other numbers nor on the bounds. A counter of the generator serves four
    numbers, with 32 bits for each. Numbers are below 2**34; other arguments as `uniform`.
    """
    first = start // 4
    blocks = np.arange(first, -(-stop // 4))
    words = np.stack(philox((0, blocks, step, epoch), (int(seed), int(stream))), axis=-1).ravel()
    return start + np.flatnonzero(words[start - 4 * first : stop - 4 * first] < share * 2.0**32)


def permutation(size: int, stream: Stream, seed: int, epoch: int, step: int, position: int = 0) -> np.ndarray:
    """A random order of range(size), int64: the argsort of one uniform per element. Other arguments: `uniform`."""
    keys = uniform(stream, seed, epoch, step, position, np.arange(size))
    return np.argsort(keys, kind="stable")


def permuted(
    place: ArrayLike, size: int, stream: Stream, seed: int, epoch: int, step: int, *, position: int = 0
) -> np.ndarray:
    """The elements at `place` (each below `size`) of a random order of range(size), int64 of the shape of `place`.

    The rest of the order is never drawn, so a batch costs the same whether there are a hundred identities or a hundred
    million: a Feistel network over the bits of `size`, with Philox as its round function, is a permutation of the next
    power of two, and a value outside range(size) is permuted again until it is inside. `size` is below 2**32.
    Source: Luby and Rackoff 1988; Black and Rogaway 2002 ("cycle walking"). Other arguments: `uniform`.
    """
    found = np.array(place, dtype=np.uint64)
    bits = max(size - 1, 0).bit_length()
    outside = np.ones(found.shape, dtype=bool)
    while bits and outside.any():
        found[outside] = _feistel(found[outside], bits, (position, step, epoch), (int(seed), int(stream)))
        outside = found >= size
    return found.astype(np.int64)


def _feistel(value: np.ndarray, bits: int, counter: tuple[int, int, int], key: tuple[int, int]) -> np.ndarray:
    """A permutation of range(2**bits): in turn, the low and the high bits are XORed with a draw keyed by the others."""
    low_bits = np.uint64((bits + 1) // 2)
    low_mask, high_mask = (np.uint64(2 ** int(width) - 1) for width in (low_bits, bits - int(low_bits)))
    low, high = value & low_mask, value >> low_bits
    for number in range(_FEISTEL_ROUNDS):
        if number % 2:
            low = low ^ (philox((high + np.uint64(number << 16), *counter), key)[0] & low_mask)
        else:
            high = high ^ (philox((low + np.uint64(number << 16), *counter), key)[0] & high_mask)
    return high << low_bits | low
