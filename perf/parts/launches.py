"""The kernels that each op launches, with what each must move and compute: the table behind the performance model.

To describe another set of kernels, change LAUNCHES and the functions that it names. A launch takes as long as the
slowest of its limits: memory, the L2 cache, the matrix units, or waves of blocks that wait for their loads.
Legend: B images, N pairs, L positions, C channels, e = 2 bytes of an element.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from perf.cases import Case

ELEMENT = 2  # bytes of bf16 and fp16
MULTIPROCESSORS = 132  # H100 SXM and H200
TILE = 64  # rows and columns of a product's tile
ROWS = 16  # rows of scores that a row kernel holds


@dataclass(frozen=True)
class Shape:
    """One alignment op's shape; an alignment runs two of them."""

    images: int
    length: int
    channels: int

    @property
    def maps(self) -> float:
        """Bytes of the features, which are also those of a reconstruction: every image is an anchor once."""
        return float(self.images * self.length * self.channels * ELEMENT)

    @property
    def tiles(self) -> int:
        return math.ceil(self.length / TILE)

    @property
    def row_blocks(self) -> int:
        return math.ceil(self.length / ROWS)

    @property
    def product(self) -> float:
        """FLOPs of one padded product of L x L x C for every pair."""
        return 2.0 * self.images * (self.tiles * TILE) ** 2 * self.channels


@dataclass(frozen=True)
class Launch:
    """One kernel, or a few small ones."""

    name: str
    memory_bytes: float = 0.0
    cache_bytes: float = 0.0  # what the multiprocessors pull out of the L2 cache
    flops: float = 0.0  # of matrix products, padding included
    waiting_us: float = 0.0  # waves of blocks times how long one waits for its loads
    fixed_us: float = 0.0  # start and end that overlap with nothing
    kernels: int = 1


def waves(blocks: float, resident: int) -> int:
    """How often all multiprocessors are filled, with `resident` blocks on each."""
    return math.ceil(blocks / (MULTIPROCESSORS * resident))


def norms(s: Shape) -> Launch:
    return Launch("norms", memory_bytes=s.maps)


def scores(s: Shape, name: str = "scores") -> Launch:
    """Every tile reads its rows of both maps, 64 x 64 at a time."""
    read = s.images * s.tiles * 2 * s.length * s.channels * ELEMENT
    return Launch(name, cache_bytes=read, flops=s.product, fixed_us=3)


def gram(s: Shape) -> Launch:
    return scores(s, "Gram matrices")


def softmax_rows(s: Shape) -> Launch:
    moved = 6.0 * s.images * s.length**2  # float32 scores read, bf16 probabilities written
    return Launch("rows", cache_bytes=moved, waiting_us=2.5 * waves(s.row_blocks * s.images, 2))


def warp(s: Shape) -> Launch:
    """The probabilities are read two bytes at a time, because a row of 162 is no multiple of 16 bytes."""
    blocks = s.tiles * s.channels / TILE * s.images
    read = blocks * 2 * s.length * TILE * ELEMENT + 2 * s.maps
    return Launch("warp", cache_bytes=read, flops=s.product, waiting_us=4.0 * waves(blocks, 5))


def finish(s: Shape) -> Launch:
    """A serial loop over the tiles of channels."""
    return Launch("finish", waiting_us=0.35 * s.channels / TILE + 2)


def distance(s: Shape) -> Launch:
    """Sixteen rows a block and one block a multiprocessor, because of its registers."""
    return Launch("distance", waiting_us=11.0 * waves(s.row_blocks * s.images, 1))


def warp_gradient(s: Shape) -> Launch:
    return Launch("warp gradient", memory_bytes=4 * s.maps)


def probability_gradient(s: Shape) -> Launch:
    return scores(s, "probability gradient")


def soft_rows_backward(s: Shape) -> Launch:
    return Launch("rows backward", waiting_us=3.5 * waves(s.row_blocks * s.images, 1))


def distance_rows_backward(s: Shape) -> Launch:
    return Launch("rows backward", waiting_us=12.0 * waves(s.row_blocks * s.images, 1))


def gram_gradient(s: Shape) -> Launch:
    return Launch("Gram gradient", waiting_us=9.0 * waves(s.tiles**2 * s.images, 3))


def soft_gradient(s: Shape) -> Launch:
    return _gradient(s, blocks_read=4)


def distance_gradient(s: Shape) -> Launch:
    return _gradient(s, blocks_read=2)


def _gradient(s: Shape, blocks_read: int) -> Launch:
    """Three products an image, 64 x 64 x 64 at a time, and `blocks_read` tiles of the maps added at the end."""
    tile_bytes = TILE * TILE * ELEMENT
    read = 3 * s.tiles * 2 * tile_bytes * 0.95 + blocks_read * tile_bytes  # the last tile of a row is partly empty
    blocks = s.tiles * s.channels / TILE * s.images
    return Launch("gradient", cache_bytes=blocks * read, flops=3 * s.product)


def small_soft(s: Shape) -> Launch:
    """The lists of pairs, and the slope in a few of PyTorch's own kernels."""
    return Launch("lists and slope", fixed_us=19.5, kernels=10)


def small_distance(s: Shape) -> Launch:
    return Launch("lists and slope", fixed_us=21.5, kernels=10)


def add_gradients(s: Shape) -> Launch:
    return Launch("sum of the two gradients", memory_bytes=3 * s.maps)


def pyramid(s: Shape) -> Launch:
    return Launch("pyramid", memory_bytes=s.maps)


def pyramid_backward(s: Shape) -> Launch:
    return Launch("pyramid backward", memory_bytes=2 * s.maps)


def ring(s: Shape) -> Launch:
    """A chain of loads and small products; nothing else limits it."""
    return Launch("ring", waiting_us=4.5 * waves(s.images, 4))


def ring_backward(s: Shape) -> Launch:
    return Launch("ring backward", waiting_us=8.5 * waves(s.images, 4))


Table = dict[tuple[str, str], tuple[Callable[[Shape], Launch], ...]]
LAUNCHES: Table = {
    ("soft_align", "forward"): (norms, scores, softmax_rows, warp, finish),
    ("soft_align", "backward"): (
        norms, small_soft, warp_gradient, probability_gradient, soft_rows_backward, soft_gradient,
    ),
    ("align_distance", "forward"): (norms, scores, gram, distance),
    ("align_distance", "backward"): (norms, small_distance, distance_rows_backward, gram_gradient, distance_gradient),
    ("gem_pyramid", "forward"): (pyramid,),
    ("gem_pyramid", "backward"): (pyramid_backward,),
    ("ring_aggregate", "forward"): (ring,),
    ("ring_aggregate", "backward"): (ring_backward,),
}  # fmt: skip
for _pass in ("forward", "backward"):
    LAUNCHES["alignment", _pass] = LAUNCHES["soft_align", _pass] + LAUNCHES["align_distance", _pass]
LAUNCHES["alignment", "backward"] += (add_gradients,)


def shape_of(case: Case) -> Shape:
    """A benchmark's case as the formulas see it."""
    if case.op == "ring_aggregate":
        return Shape(case.shape["B"], case.shape["R"], case.shape["D"])
    if case.op == "gem_pyramid":
        return Shape(case.shape["B"], case.shape["H"] * case.shape["W"], case.shape["C"])
    return Shape(case.shape["B"], case.shape["L"], case.shape["C"])


@dataclass(frozen=True)
class Rival:
    """Plain formulas: bytes in multiples of one reconstruction's, kernels, and how many of them are large products."""

    maps: float
    kernels: int
    products: int


# Counted by a dispatch mode over the plain formulas in bf16.
EAGER = {
    ("soft_align", "forward"): Rival(55.5, 44, 3), ("soft_align", "backward"): Rival(114.6, 50, 4),
    ("align_distance", "forward"): Rival(48.3, 30, 2), ("align_distance", "backward"): Rival(104.6, 46, 4),
    ("alignment", "forward"): Rival(103.8, 74, 5), ("alignment", "backward"): Rival(222.2, 97, 8),
    ("gem_pyramid", "forward"): Rival(17.6, 8, 0), ("gem_pyramid", "backward"): Rival(43.0, 15, 0),
}  # fmt: skip
# Estimated, not counted: gathers, index_put and cuBLAS's products stay, the rest is fused.
COMPILED = {
    ("soft_align", "forward"): Rival(17, 10, 3), ("soft_align", "backward"): Rival(38, 14, 4),
    ("align_distance", "forward"): Rival(13, 8, 2), ("align_distance", "backward"): Rival(34, 13, 4),
    ("alignment", "forward"): Rival(28, 16, 5), ("alignment", "backward"): Rival(72, 24, 8),
}  # fmt: skip
