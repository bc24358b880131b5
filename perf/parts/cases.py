"""The cases of the kernel benchmark: shapes, plain formulas to compare with, and the least bytes and FLOPs of each op.

Legend: B images, L positions, C channels, N pairs, R parts, D node width, A projection width; e bytes of an element.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from kernels.alignment import align, align_distance, soft_align
from kernels.alignment import reference as alignment_reference
from kernels.alignment.mask import feature_mask, minmax
from kernels.alignment.reference import DISTANCE_FLOOR, NORM_FLOOR
from kernels.batch_norm import batch_norm_relu
from kernels.common.path import Backend
from kernels.gem_pyramid import gem_pyramid
from kernels.gem_pyramid import reference as gem_pyramid_reference
from kernels.ring_aggregate import reference as ring_aggregate_reference
from kernels.ring_aggregate import ring_aggregate

BETA = 50.0
Tensors = tuple[torch.Tensor, ...]
Inputs = tuple[Tensors, Tensors]  # the tensors that get a gradient, and the constants


@dataclass(frozen=True)
class Case:
    """An op at one shape. The functions take the inputs, then the constants, and return one tensor or several."""

    op: str
    shape: dict[str, int]
    inputs: Callable[[torch.dtype, str], Inputs]
    eager: Callable[..., torch.Tensor | Tensors]  # plain formulas in the inputs' dtype; compiled, also the rival
    ours: Callable[..., torch.Tensor | Tensors]
    definition: Callable[..., torch.Tensor | Tensors]
    flops: dict[str, float]  # "forward", "backward": multiplications and additions of the products
    moved: dict[str, Callable[[int], float]] = field(repr=False)  # element size -> bytes that must move at least
    sdpa: Callable[..., torch.Tensor | Tensors] | None = None  # plain formulas around PyTorch's fused attention
    cublas: Callable[..., torch.Tensor | Tensors] | None = None  # plain formulas on maps padded for aligned products

    @property
    def name(self) -> str:
        return f"{self.op} " + " ".join(f"{key}={value}" for key, value in self.shape.items())


def cases(device: str) -> list[Case]:
    """The real shapes: 64 and 96 images of 288x144, 384x144, and on a GPU a batch of 512."""
    alignment = [(64, 162, 1024), (64, 162, 2048), (96, 162, 1024), (96, 162, 2048), (64, 216, 2048)]
    if device == "cuda":
        alignment += [(512, 162, 1024), (512, 162, 2048)]
    found = [build(*shape) for shape in alignment for build in (soft_align_case, align_distance_case, both_case)]
    images = (64, 96, 512) if device == "cuda" else (64, 96)
    found += [build(count) for count in images for build in (gem_pyramid_case, ring_aggregate_case)]
    # A CPU has no kernel for it. The shapes: inside a block of layer 1, at the end of one, and at the end of layer 4.
    norms = [((96, 72, 36, 64), False), ((96, 72, 36, 256), True), ((96, 18, 9, 2048), True)]
    return found + [batch_norm_case(*shape, added) for shape, added in norms if device == "cuda"]


def small_cases() -> list[Case]:
    """Two shapes of every op, for rehearsals and tests; one has more positions than one multiple of 16."""
    shapes = ((4, 9, 16), (6, 20, 24))
    found = [build(*shape) for shape in shapes for build in (soft_align_case, align_distance_case, both_case)]
    found += [build(shape[0]) for shape in shapes for build in (gem_pyramid_case, ring_aggregate_case)]
    return found + [batch_norm_case(4, 3, 2, 8, added) for added in (False, True)]


def _pairs(images: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every image an anchor once; positives and negatives in the other half, as in a batch of two modalities."""
    draw = torch.Generator().manual_seed(1)
    half = images // 2
    anchor = torch.arange(images)
    other = torch.where(anchor < half, half, 0)
    positive, negative = (other + torch.randint(half, (images,), generator=draw) for _ in range(2))
    return anchor.to(device), positive.to(device), negative.to(device)


def _features(images: int, length: int, channels: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Features like maps after ReLU, similar enough to each other that the softmax is not one-hot."""
    draw = torch.Generator().manual_seed(2)
    common = torch.rand(1, length, channels, generator=draw)
    return (common + torch.randn(images, length, channels, generator=draw)).relu().to(device, dtype)


def plain_probability(features: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """softmax(beta cos), with products in the features' dtype."""
    unit = F.normalize(features.float(), dim=-1).to(features.dtype)
    return torch.softmax(BETA * (unit[anchor] @ unit[target].mT).float(), dim=-1)


def plain_distance(anchor_NLC: torch.Tensor, warp_NLC: torch.Tensor, mask_NL: torch.Tensor) -> torch.Tensor:
    """m |f - w| over channels in float32, with a finite gradient at w = f."""
    square = (anchor_NLC.float() - warp_NLC.float()).square().sum(-1)
    floor = DISTANCE_FLOOR * anchor_NLC.detach().float().norm(dim=-1).clamp_min(NORM_FLOOR).square()
    return mask_NL * torch.where(square > floor, square, floor).sqrt()


def plain_soft_align(features: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor) -> Tensors:
    """The usual formulas, as a re-id code would write them under autocast."""
    probability = plain_probability(features, anchor, target)
    own, m = features[anchor], mask[anchor]
    warp = probability.to(features.dtype) @ features[target]
    blend = m.unsqueeze(-1).to(features.dtype)
    seen = (probability.detach() @ mask[target].unsqueeze(-1)).squeeze(-1)
    return blend * warp + (1 - blend) * own, plain_distance(own, warp, m), minmax(m * seen)


def plain_align_distance(
    features: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The usual formulas, which write the warp to memory."""
    warp = plain_probability(features, anchor, target).to(features.dtype) @ features[target]
    return plain_distance(features[anchor], warp, mask[anchor])


def sdpa_warp(
    features: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Warp (N, L, C) and warped mask (N, L) by PyTorch's fused attention, with the mask as an additional channel.

    Keys and values are padded to the same width, a multiple of 8, because some fused backends require that.
    """
    channels = features.shape[-1]
    unit = F.pad(F.normalize(features.float(), dim=-1).to(features.dtype), (0, 8))
    value = torch.cat([features, F.pad(mask.unsqueeze(-1).to(features.dtype), (0, 7))], dim=-1)
    found = F.scaled_dot_product_attention(
        unit[anchor].unsqueeze(1), unit[target].unsqueeze(1), value[target].unsqueeze(1), scale=BETA
    ).squeeze(1)
    return found[..., :channels], found[..., channels].detach().float()


def sdpa_soft_align(features: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor) -> Tensors:
    """`plain_soft_align` with the fused attention."""
    warp, seen = sdpa_warp(features, mask, anchor, target)
    own, m = features[anchor], mask[anchor]
    blend = m.unsqueeze(-1).to(features.dtype)
    return blend * warp + (1 - blend) * own, plain_distance(own, warp, m), minmax(m * seen)


def sdpa_align_distance(
    features: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """`plain_align_distance` with the fused attention."""
    warp, _ = sdpa_warp(features, mask, anchor, target)
    return plain_distance(features[anchor], warp, mask[anchor])


def cublas_alignment(
    features: torch.Tensor, mask: torch.Tensor, anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> Tensors:
    """Both ops with products whose width is a multiple of 16, so that cuBLAS uses its fastest kernels.

    L = 162 leaves the rows of L x L matrices unaligned, which handicaps the plain formulas; here the maps are padded
    once with zero positions, each anchor is gathered once, and padded positions get no probability.
    """
    length = features.shape[1]
    padded = F.pad(features, (0, 0, 0, -length % 16))
    unit = F.normalize(padded.float(), dim=-1).to(features.dtype)
    unit_anchor, own, m = unit[anchor], features[anchor], mask[anchor]

    def warped(target: torch.Tensor) -> Tensors:
        score = BETA * torch.bmm(unit_anchor, unit[target].mT).float()
        score[..., length:] = float("-inf")
        probability = torch.softmax(score, dim=-1)
        warp = torch.bmm(probability.to(features.dtype), padded[target])[:, :length]
        return warp, probability.detach()[:, :length, :length]

    warp, probability = warped(positive)
    blend = m.unsqueeze(-1).to(features.dtype)
    seen = (probability @ mask[positive].unsqueeze(-1)).squeeze(-1)
    rebuilt = blend * warp + (1 - blend) * own
    other, _ = warped(negative)
    return rebuilt, plain_distance(own, warp, m), minmax(m * seen), plain_distance(own, other, m)


def _alignment_inputs(images: int, length: int, channels: int) -> Callable[[torch.dtype, str], Inputs]:
    def inputs(dtype: torch.dtype, device: str) -> Inputs:
        features = _features(images, length, channels, dtype, device)
        return (features,), (feature_mask(features), *_pairs(images, device))

    return inputs


def soft_align_case(images: int, length: int, channels: int) -> Case:
    """The reconstruction of the positives."""
    one = 2.0 * images * length * length * channels  # a product of L x L x C for every pair
    maps = images * length * channels
    return Case(
        "soft_align",
        {"B": images, "N": images, "L": length, "C": channels},
        _alignment_inputs(images, length, channels),
        lambda f, m, anchor, positive, _: plain_soft_align(f, m, anchor, positive),
        lambda f, m, anchor, positive, _: soft_align(f, m, anchor, positive, BETA),
        lambda f, m, anchor, positive, _: alignment_reference.soft_align(f, m, anchor, positive, BETA),
        {"forward": 2 * one, "backward": 4 * one},
        {"forward": lambda e: 2.0 * maps * e, "backward": lambda e: 4.0 * maps * e},
        lambda f, m, anchor, positive, _: sdpa_soft_align(f, m, anchor, positive),
    )


def align_distance_case(images: int, length: int, channels: int) -> Case:
    """The distances of the negatives."""
    one, cube = 2.0 * images * length * length * channels, 2.0 * images * length**3
    maps = images * length * channels
    return Case(
        "align_distance",
        {"B": images, "N": images, "L": length, "C": channels},
        _alignment_inputs(images, length, channels),
        lambda f, m, anchor, _, negative: plain_align_distance(f, m, anchor, negative),
        lambda f, m, anchor, _, negative: align_distance(f, m, anchor, negative, BETA),
        lambda f, m, anchor, _, negative: alignment_reference.align_distance(f, m, anchor, negative, BETA),
        {"forward": 2 * one + cube, "backward": 3 * one + 2 * cube},
        {"forward": lambda e: 1.0 * maps * e, "backward": lambda e: 2.0 * maps * e},
        lambda f, m, anchor, _, negative: sdpa_align_distance(f, m, anchor, negative),
    )


def both_case(images: int, length: int, channels: int) -> Case:
    """One layer of CMAAM: the reconstruction of the positives and the distances of the negatives."""
    parts = soft_align_case(images, length, channels), align_distance_case(images, length, channels)

    def together(way: str) -> Callable[..., Tensors]:
        return lambda *tensors: (*getattr(parts[0], way)(*tensors), getattr(parts[1], way)(*tensors))

    def moved(pass_: str) -> Callable[[int], float]:
        return lambda e: parts[0].moved[pass_](e) + parts[1].moved[pass_](e)

    return Case(
        "alignment",
        {"B": images, "N": 2 * images, "L": length, "C": channels},
        parts[0].inputs,
        together("eager"),
        lambda f, m, anchor, positive, negative: align(f, m, anchor, positive, negative, BETA),
        together("definition"),
        {name: parts[0].flops[name] + parts[1].flops[name] for name in ("forward", "backward")},
        {name: moved(name) for name in ("forward", "backward")},
        together("sdpa"),
        cublas_alignment,
    )


def gem_pyramid_case(images: int) -> Case:
    height, width, channels, levels = 18, 9, 2048, (1, 3, 6)
    maps = images * height * width * channels

    def inputs(dtype: torch.dtype, device: str) -> Inputs:
        return (_features(images, height * width, channels, dtype, device).view(images, height, width, channels),), ()

    return Case(
        "gem_pyramid",
        {"B": images, "H": height, "W": width, "C": channels},
        inputs,
        lambda x: gem_pyramid_reference.gem_pyramid(x, levels, 3.0, 1e-6),
        lambda x: gem_pyramid(x, levels, 3.0, 1e-6),
        lambda x: gem_pyramid_reference.gem_pyramid(x, levels, 3.0, 1e-6),
        {"forward": 0.0, "backward": 0.0},
        {"forward": lambda e: 1.0 * maps * e, "backward": lambda e: 2.0 * maps * e},
    )


def ring_aggregate_case(images: int) -> Case:
    parts, width, projection = 6, 512, 128
    numbers = images * parts * (width + 2 * projection)

    def inputs(dtype: torch.dtype, device: str) -> Inputs:
        draw = torch.Generator().manual_seed(3)
        sizes = (width, projection, projection)
        return tuple(torch.randn(images, parts, size, generator=draw).to(device, dtype) for size in sizes), ()

    return Case(
        "ring_aggregate",
        {"B": images, "R": parts, "D": width, "A": projection},
        inputs,
        lambda u, t, p: ring_aggregate_reference.ring_aggregate(u, t, p, 2),
        lambda u, t, p: ring_aggregate(u, t, p, 2),
        lambda u, t, p: ring_aggregate_reference.ring_aggregate(u, t, p, 2),
        {"forward": 0.0, "backward": 0.0},
        {
            "forward": lambda e: (numbers + images * parts * width) * e,
            "backward": lambda e: (2 * numbers + images * parts * width) * e,
        },
    )


def plain_batch_norm_relu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *added: torch.Tensor
) -> torch.Tensor:
    """PyTorch's norm, sum and ReLU, each in a kernel of its own."""
    normed = F.batch_norm(x.permute(0, 3, 1, 2), None, None, weight, bias, training=True).permute(0, 2, 3, 1)
    return (normed + added[0] if added else normed).relu_()


def batch_norm_case(images: int, height: int, width: int, channels: int, added: bool) -> Case:
    """A norm and ReLU inside a residual block, or, with the sum, at its end."""
    maps = images * height * width * channels
    shape = {"B": images, "H": height, "W": width, "C": channels, "added": int(added)}

    def inputs(dtype: torch.dtype, device: str) -> Inputs:
        draw = torch.Generator().manual_seed(4)
        features = 1 + 2 * torch.randn(1 + added, images, height, width, channels, generator=draw)
        weight, bias = torch.rand(2, channels, generator=draw)
        return tuple(x.to(device, dtype) for x in (features[0], weight + 0.5, bias - 0.5, *features[1:])), ()

    def run(backend: Backend) -> Callable[..., torch.Tensor]:
        return lambda x, weight, bias, residual=None: batch_norm_relu(x, weight, bias, 1e-5, residual, backend=backend)[
            0
        ]

    return Case(
        "batch_norm",
        shape,
        inputs,
        plain_batch_norm_relu,
        run("auto"),
        run("reference"),
        {"forward": 0.0, "backward": 0.0},
        # Statistics must be known before anything can be written, so a map larger than the cache is read twice.
        {"forward": lambda e: (3.0 + added) * maps * e, "backward": lambda e: (5.0 + 2 * added) * maps * e},
    )
