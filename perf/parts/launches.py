"""The kernels that each op launches, with what each must move and compute: the table behind the performance model.

To describe another set of kernels, change LAUNCHES and the functions that it names. A launch takes as long as the
slowest of its limits: memory, the L2 cache, the matrix units, or waves of blocks that wait for their loads. The
alignment's kernels are described in kernels/alignment/README.md. How many of their blocks fit one multiprocessor
follows from the registers and the shared memory that perf/compile_report.py counts. How long one of their waves waits
was fitted to their times on an H200 (perf/results/gpu/kernel_times.json, and tune_alignment.json for a warp of one
part: bf16, 64 images, L = 162, C = 2048), so agreement at that one shape says nothing about the model.
Legend: B images, N pairs, L positions, LP = L rounded up to 16, C channels, e = 2 bytes of an element.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from perf.parts.cases import Case

ELEMENT = 2  # bytes of bf16 and fp16
SINGLE = 4  # bytes of float32
MULTIPROCESSORS = 132  # H100 SXM and H200
# The tiles of the kernels' default choice on Hopper (kernels/alignment/kernel.py; a test compares).
SQUARE = 64  # rows and columns of a tile of a product of two L x L matrices
CHANNELS = 64  # that a step of the warp makes
PARTS = 2  # programs that share a pair's channels in the warp, where one does not suffice
WARP_STEP_US = {1: 2.6, PARTS: 2.7}  # how long one of its steps waits, by the parts
GRADIENT_CHANNELS = 128  # that a program of the gradient owns
WEIGHT_ROWS = 16  # of scores that a program holds whole, forward
SOFTMAX_ROWS = 8  # the same, backward
# Assumed time that a warp of one part takes to make a pair's weights before its first step: it loads the pair's scores,
# takes 28,512 exponentials on one multiprocessor, and reduces twice.
MAKING_WEIGHTS_US = 3.0
LIST_BLOCK = 128  # pairs that the lists look at together
# The pyramid's kernels with levels (1, 3, 6) and p = 3. Instructions are those of the compiled code for sm_90.
FINE, POOLED = 6, 10  # fine stripes and pooled stripes of an image
SUM_POSITIONS, SUM_CHANNELS = 8, 256  # that a warp of the sums reads at once
SUM_ROUND, SUM_REST = 370, 90  # instructions for these, and before and after all of them
ROOT_CHANNELS, ROOT_INSTRUCTIONS = 256, 330  # that a warp takes roots of, and how many instructions it needs
CLOCK_HZ, SCHEDULERS = 1.755e9, 4  # of a multiprocessor under load; each issues one instruction a cycle
ALONE_CYCLES = 2  # between two instructions of a warp that has its scheduler to itself, assumed
LOAD_US, CACHED_LOAD_US = 0.7, 0.3  # from memory under load, and from the L2 cache; assumed


def padded(count: int, multiple: int) -> int:
    return math.ceil(count / multiple) * multiple


@dataclass(frozen=True)
class Shape:
    """An op's shape. An alignment rebuilds its positives and measures both; the other ops have no pairs."""

    images: int
    length: int
    channels: int
    positives: int = 0
    negatives: int = 0
    added: int = 0  # residuals that a batch norm adds

    @property
    def pairs(self) -> int:
        return self.positives + self.negatives

    @property
    def map_bytes(self) -> float:
        """One image's features."""
        return float(self.length * self.channels * ELEMENT)

    @property
    def maps(self) -> float:
        """Bytes of the features, which are also those of a reconstruction: every image is an anchor once."""
        return self.images * self.map_bytes

    @property
    def padded_length(self) -> int:
        return padded(self.length, 16)

    @property
    def matrix(self) -> float:
        """Elements of one L x LP matrix."""
        return float(self.length * self.padded_length)

    @property
    def rows(self) -> int:
        """The rows that a program of a product of maps owns: a whole map's, up to 192."""
        return 192 if 128 < self.length <= 192 else 128

    @property
    def tiles(self) -> int:
        return math.ceil(self.length / self.rows)

    @property
    def warp_parts(self) -> int:
        """Programs of the warp for a pair that keep its weights; 0 where none can."""
        alone = PARTS * waves(self.pairs, 1) <= waves(PARTS * self.pairs, 1)
        parts = 1 if alone else PARTS
        return parts if self.tiles == 1 and self.channels % (parts * CHANNELS) == 0 else 0

    @property
    def square_tiles(self) -> int:
        """Tiles of an L x L matrix."""
        return math.ceil(self.padded_length / SQUARE) ** 2

    @property
    def product(self) -> float:
        """FLOPs of one product of L x L x C for as many pairs as images, in tiles of 64 rows."""
        return 2.0 * self.images * padded(self.length, 64) ** 2 * self.channels


@dataclass(frozen=True)
class Launch:
    """One kernel, or a few small ones."""

    name: str
    memory_bytes: float = 0.0
    cache_bytes: float = 0.0  # what the multiprocessors pull out of the L2 cache and write into it
    flops: float = 0.0  # of matrix products, padding included
    waiting_us: float = 0.0  # waves of blocks times how long one waits for its loads
    fixed_us: float = 0.0  # start and end that overlap with nothing
    kernels: int = 1


def waves(blocks: float, resident: int) -> int:
    """How often all multiprocessors are filled, with `resident` blocks on each."""
    return math.ceil(blocks / (MULTIPROCESSORS * resident))


def warps_us(warps: float, resident: int, instructions: float, rounds: float, load_us: float) -> float:
    """How long warps take of which a multiprocessor holds `resident`.

    Each waits for `rounds` of loads one after the other and issues its instructions. Warps on one multiprocessor wait
    together, but the schedulers issue the instructions of all of them in turn.
    """
    on_scheduler = max(math.ceil(warps / (MULTIPROCESSORS * SCHEDULERS)), ALONE_CYCLES)
    return waves(warps, resident) * rounds * load_us + 1e6 * instructions * on_scheduler / CLOCK_HZ


def norms(s: Shape) -> Launch:
    return Launch("norms", memory_bytes=s.maps)


def _map_products(name: str, s: Shape, products: int, written: float) -> Launch:
    """Every program reads its rows of two maps: a whole pair where 192 rows hold one."""
    tiles = products * s.tiles**2
    read = products * 2 * s.tiles * s.map_bytes
    return Launch(name, cache_bytes=read + written, flops=2.0 * tiles * s.rows**2 * s.channels)


def scores(s: Shape) -> Launch:
    return _map_products("scores", s, s.pairs, s.pairs * s.matrix * SINGLE)


def weights(s: Shape) -> Launch | None:
    """A warp of one part makes the weights itself."""
    if s.warp_parts == 1:
        return None
    moved = s.pairs * s.matrix * (SINGLE + ELEMENT)
    blocks = math.ceil(s.length / WEIGHT_ROWS) * s.pairs
    return Launch("weights", cache_bytes=moved, waiting_us=5.0 * waves(blocks, 7))


def warp(s: Shape) -> Launch:
    """Where one program holds a pair's weights, its channels pass by step by step; one program fits a multiprocessor.

    Other maps are made in tiles, of which each reads its rows of the weights again.
    """
    own = s.pairs * s.map_bytes  # the anchor, for blend and distance
    written = s.positives * s.map_bytes
    flops = 2.0 * s.pairs * s.tiles * s.rows * padded(s.length, 64) * s.channels
    if parts := s.warp_parts:
        weights_bytes = s.matrix * ((SINGLE + ELEMENT) if parts == 1 else parts * ELEMENT)
        steps = s.channels / (parts * CHANNELS)
        waiting = WARP_STEP_US[parts] * steps * waves(parts * s.pairs, 1)
        making = MAKING_WEIGHTS_US * waves(s.pairs, 1) if parts == 1 else 0.0
        moved = s.pairs * (weights_bytes + s.map_bytes) + own + written
        return Launch("warp", cache_bytes=moved, flops=flops, waiting_us=waiting, fixed_us=making)
    read = s.pairs * (s.channels / CHANNELS * s.matrix * ELEMENT + s.tiles * s.map_bytes)
    return Launch("warp", cache_bytes=read + own + written, flops=flops)


def finish(s: Shape) -> Launch | None:
    """A warp of one part finishes its pair itself."""
    return None if s.warp_parts == 1 else Launch("finish", waiting_us=3.0 * waves(s.pairs, 16))


def products(s: Shape) -> Launch:
    """g f_k^T of the positives, and every image's Gram matrix in two half numbers."""
    written = s.positives * s.matrix * SINGLE + s.images * s.matrix * 2 * ELEMENT
    return _map_products("products", s, s.positives + s.images, written)


def quadratic(s: Shape) -> Launch:
    """W G in square tiles: rows of the weights and, in two half numbers, of the Gram matrix.

    Meanwhile one program per image lists its products, for which it walks the pairs twice, a block at a time.
    """
    blocks = s.pairs * s.square_tiles
    read = blocks * 3 * SQUARE * s.padded_length * ELEMENT
    flops = 2.0 * blocks * SQUARE**2 * 2 * padded(s.padded_length, 64)
    listing = 1.0 + 0.6 * 2 * math.ceil(s.pairs / LIST_BLOCK)
    return Launch("quadratic", cache_bytes=read + s.pairs * s.matrix * SINGLE, flops=flops, waiting_us=listing)


def softmax(s: Shape) -> Launch:
    """Reads scores, weights and both products; writes E, its transpose, slope P and the positives' (m P)^T."""
    read = s.matrix * (s.pairs * (2 * SINGLE + ELEMENT) + s.positives * SINGLE)
    written = s.matrix * (s.pairs * 3 + s.positives) * ELEMENT
    blocks = math.ceil(s.padded_length / SOFTMAX_ROWS) * s.pairs
    return Launch("softmax", cache_bytes=read + written, waiting_us=6.5 * waves(blocks, 5))


def gram_gradient(s: Shape) -> Launch:
    """For every image the sum over the pairs whose target it is, 64 rows at a time.

    Meanwhile one program per image sums what is taken out along f, over its pairs and their blocks of rows.
    """
    blocks, each = s.images * s.square_tiles, s.pairs / s.images
    read = blocks * each * 2 * SQUARE * s.length * ELEMENT
    read += s.pairs * math.ceil(s.padded_length / SOFTMAX_ROWS) * s.length * SINGLE
    steps = each * math.ceil(s.length / SQUARE)
    flops = 2.0 * blocks * each * SQUARE**2 * padded(s.length, SQUARE)
    waiting = max(1.5 * steps * waves(blocks + s.images, 4), 3.0 + 3.5 * each)
    return Launch("Gram gradient", cache_bytes=read, flops=flops, waiting_us=waiting)


def gradient(s: Shape) -> Launch:
    """All rows of an image and 128 channels of it: two products a pair, one more a positive and one an image.

    At the end the positives' gradients of the reconstruction are blended in, the features read and the result written.
    """
    count = 2 * s.pairs + s.positives + s.images
    columns = math.ceil(s.channels / GRADIENT_CHANNELS)
    read = count * (columns * s.matrix * ELEMENT + s.tiles * s.map_bytes)
    flops = 2.0 * count * s.tiles * s.rows * padded(s.length, 64) * s.channels
    return Launch("gradient", cache_bytes=read + s.positives * s.map_bytes + 2 * s.maps, flops=flops)


def pyramid_sums(s: Shape) -> Launch:
    """A warp for every fine stripe and 256 channels reads eight positions at once."""
    warps = s.images * FINE * math.ceil(s.channels / SUM_CHANNELS)
    rounds = math.ceil(s.length / FINE / SUM_POSITIONS)
    waiting = warps_us(warps, 32, rounds * SUM_ROUND + SUM_REST, rounds, LOAD_US)
    written = s.images * FINE * s.channels * SINGLE
    return Launch("pyramid sums", memory_bytes=s.maps + written, waiting_us=waiting)


def pyramid_roots(s: Shape) -> Launch:
    """The sums come from the L2 cache, those of the whole map one after the other."""
    numbers = s.images * s.channels
    waiting = warps_us(POOLED * numbers / ROOT_CHANNELS, 64, ROOT_INSTRUCTIONS, FINE / 2, CACHED_LOAD_US)
    return Launch("pyramid roots", cache_bytes=numbers * (3 * FINE + POOLED) * SINGLE, waiting_us=waiting)


def pyramid_backward(s: Shape) -> Launch:
    return Launch("pyramid backward", memory_bytes=2 * s.maps)


def ring(s: Shape) -> Launch:
    """A chain of loads and small products; nothing else limits it."""
    return Launch("ring", waiting_us=4.5 * waves(s.images, 4))


def ring_backward(s: Shape) -> Launch:
    return Launch("ring backward", waiting_us=8.5 * waves(s.images, 4))


def norm_sums(s: Shape) -> Launch:
    """A read of the map, and a program for 64 channels that adds the parts."""
    return Launch("norm sums", memory_bytes=s.maps, fixed_us=3.0, kernels=2)


def norm_map(s: Shape) -> Launch:
    return Launch("norm map", memory_bytes=(2 + s.added) * s.maps)


def norm_gradient_sums(s: Shape) -> Launch:
    """With a residual it also reads the result, and writes the residual's gradient."""
    return Launch("norm gradient sums", memory_bytes=(2 + 2 * s.added) * s.maps, fixed_us=3.0, kernels=2)


def norm_gradient(s: Shape) -> Launch:
    return Launch("norm gradient", memory_bytes=3 * s.maps)


Table = dict[tuple[str, str], tuple[Callable[[Shape], Launch | None], ...]]
LAUNCHES: Table = {
    ("gem_pyramid", "forward"): (pyramid_sums, pyramid_roots),
    ("gem_pyramid", "backward"): (pyramid_backward,),
    ("ring_aggregate", "forward"): (ring,),
    ("ring_aggregate", "backward"): (ring_backward,),
    ("batch_norm", "forward"): (norm_sums, norm_map),
    ("batch_norm", "backward"): (norm_gradient_sums, norm_gradient),
}
for _op in ("soft_align", "align_distance", "alignment"):  # the same kernels; only their pairs differ
    LAUNCHES[_op, "forward"] = (norms, scores, weights, warp, finish)
    LAUNCHES[_op, "backward"] = (
        products,
        quadratic,
        softmax,
        gram_gradient,
        gradient,
    )


def launches(op: str, pass_: str, shape: Shape) -> list[Launch]:
    """What one call of the op launches in a pass."""
    return [launch for make in LAUNCHES[op, pass_] if (launch := make(shape)) is not None]


def shape_of(case: Case) -> Shape:
    """A benchmark's case as the formulas see it."""
    if case.op == "ring_aggregate":
        return Shape(case.shape["B"], case.shape["R"], case.shape["D"])
    if case.op in ("gem_pyramid", "batch_norm"):
        added = case.shape.get("added", 0)
        return Shape(case.shape["B"], case.shape["H"] * case.shape["W"], case.shape["C"], added=added)
    images = case.shape["B"]
    positives = 0 if case.op == "align_distance" else images
    negatives = 0 if case.op == "soft_align" else images
    return Shape(images, case.shape["L"], case.shape["C"], positives, negatives)


@dataclass(frozen=True)
class Rival:
    """Plain formulas: bytes in multiples of one reconstruction's, kernels, and how many of them are large products."""

    maps: float
    kernels: int
    products: int


# Counted by a dispatch mode over the plain formulas in bf16.
EAGER = {
    ("soft_align", "forward"): Rival(55.5, 44, 3),
    ("soft_align", "backward"): Rival(114.6, 50, 4),
    ("align_distance", "forward"): Rival(48.3, 30, 2),
    ("align_distance", "backward"): Rival(104.6, 46, 4),
    ("alignment", "forward"): Rival(103.8, 74, 5),
    ("alignment", "backward"): Rival(222.2, 97, 8),
    ("gem_pyramid", "forward"): Rival(17.6, 8, 0),
    ("gem_pyramid", "backward"): Rival(43.0, 15, 0),
}
# Estimated, not counted: gathers, index_put and cuBLAS's products stay, the rest is fused.
COMPILED = {
    ("soft_align", "forward"): Rival(17, 10, 3),
    ("soft_align", "backward"): Rival(38, 14, 4),
    ("align_distance", "forward"): Rival(13, 8, 2),
    ("align_distance", "backward"): Rival(34, 13, 4),
    ("alignment", "forward"): Rival(28, 16, 5),
    ("alignment", "backward"): Rival(72, 24, 8),
}
