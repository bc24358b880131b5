"""A classifier split over the ranks by identities: each rank keeps the weights of its range, and features travel.

ZeRO-3 keeps a part of every weight on each rank and moves whole weights in every step. Here every rank sees the
features and labels of all ranks and computes their logits for its own identities; two small sums over ranks make the
softmax exact. Large face recognition trainers work this way (ArcFace's and its successors' code), and like them a step
can use a sample of the identities instead of all (Partial FC, An et al. 2020).

B rows of this rank, G rows of all ranks, C channels, I identities, N stacked classifiers, c identities of a chunk,
S identities of this rank's range that the step uses: all of it, or the sample's.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from tacaf import distributed
from tacaf.interfaces import Scores
from tacaf.model.identities import IdentityRange, StepIdentities

BLOCK = 256  # identities whose initial weights come from one generator; part of every run's identity


def initial_weight(
    name: str, shape: tuple[int, ...], own: IdentityRange, std: float, seed: int | None = None
) -> torch.Tensor:
    """... x I x C of the range from N(0, std): a function of (seed, name, identity), whatever the range is.

    `shape` is that of one identity: C or N x C. `seed` is PyTorch's own where it is not given.
    """
    seed = torch.initial_seed() if seed is None else seed
    weight = torch.empty(own.stop - own.start, *shape)
    for block in range(own.start // BLOCK, -(-own.stop // BLOCK)):
        key = hashlib.sha256(f"{seed} {name} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
        drawn = torch.empty(BLOCK, *shape).normal_(std=std, generator=generator)
        first = block * BLOCK
        start, stop = max(own.start, first), min(own.stop, first + BLOCK)
        weight[start - own.start : stop - own.start] = drawn[start - first : stop - first]
    return weight.movedim(0, -2).contiguous()


class RangeClassifier(nn.Module):
    """As `Classifier`, for this rank's range of identities; every rank must call it, with equally many rows.

    DeepSpeed would broadcast, average and partition every parameter that it finds in the model, so the weight is not
    one of the module's parameters: `train.ranges` updates and saves it. It does follow `to`.
    """

    def __init__(self, weight: torch.Tensor, own: IdentityRange, chunk: int) -> None:
        """`weight` is (stop - start) x C, or N x (stop - start) x C."""
        super().__init__()
        assert weight.shape[-2] == own.stop - own.start
        self.own = own
        self.chunk = chunk
        self._hidden = (nn.Parameter(weight),)  # nn.Module registers no parameter that is in a tuple

    @property
    def weight(self) -> nn.Parameter:
        return self._hidden[0]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RangeClassifier":
        super()._apply(fn, recurse)
        with torch.no_grad():
            self.weight.data = fn(self.weight.data)
        return self

    def forward(self, rows: torch.Tensor, label_B: torch.Tensor, used: StepIdentities | None = None) -> Scores:
        """rows B x C or N x B x C, int64 labels B to scores B or N x B of these rows, float32 (or float64).

        The softmax and the mean are over all identities, or over those `used`, which must include every label; the
        gradient of the others is then 0.

        The gradient of the rows is this rank's, as for any module. The gradient of the weight is that of the mean of
        all ranks' losses, which DeepSpeed makes of other parameters' gradients by averaging.
        """
        kind = rows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        with torch.autocast(kind, enabled=False):
            return Scores(*_RangeScores.apply(rows, self.weight, label_B, self.own, self.chunk, dtype, used))


class _RangeScores(torch.autograd.Function):
    """Rows and a range's weight to the rows' own log-probabilities and their means over the identities.

    Logits live for one chunk at a time and are computed again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        label_B: torch.Tensor,
        own: IdentityRange,
        chunk: int,
        dtype: torch.dtype,
        used: StepIdentities | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows_GC = _all_rows(rows.to(dtype))
        place_S = None if used is None else used.place_S
        place_G = _places(distributed.gather_rows(label_B), own, place_S)
        count = own.identities if used is None else used.total
        largest, total = _summed_over_range(rows_GC, _chunks(weight, chunk, place_S), place_G)
        maximum = distributed.max_over_ranks(largest)
        total[0] *= (largest - maximum).exp()
        exponentials, own_logit, logits = distributed.sum_over_ranks(total)
        log_sum = maximum + exponentials.log()
        ctx.save_for_backward(rows_GC, weight, place_G, place_S, log_sum)
        ctx.chunk, ctx.rows_dtype, ctx.count = chunk, rows.dtype, count
        return _own_rows(own_logit - log_sum, -1), _own_rows(logits / count - log_sum, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows_GC, weight, place_G, place_S, log_sum = ctx.saved_tensors
        own_gradient, mean_gradient = _all_rows(torch.stack(gradients)[..., None])[..., 0]
        rows_gradient = torch.zeros_like(rows_GC, dtype=log_sum.dtype)
        weight_gradient = torch.zeros_like(weight)
        for first, part in _chunks(weight, ctx.chunk, place_S):
            part = part.to(rows_GC.dtype)
            probability = (_logits(rows_GC, part) - log_sum[..., None]).exp_()
            logit_gradient = probability.mul_(-(own_gradient + mean_gradient)[..., None])
            logit_gradient += (mean_gradient / ctx.count)[..., None]
            here_H, place_H = _labels_in(place_G, first, part.shape[-2])
            logit_gradient[..., here_H, place_H] += own_gradient[..., here_H]
            logit_gradient = logit_gradient.to(rows_GC.dtype)
            rows_gradient += logit_gradient @ part
            part_gradient = _weight_gradient(logit_gradient, rows_GC, weight).to(weight.dtype)
            where = slice(first, first + part.shape[-2])
            weight_gradient[..., where if place_S is None else place_S[where], :] = part_gradient
        rows_gradient = _own_rows(distributed.sum_over_ranks(rows_gradient), -2).to(ctx.rows_dtype)
        return rows_gradient, weight_gradient.div_(distributed.world_size()), None, None, None, None, None


def _summed_over_range(
    rows_GC: torch.Tensor, chunks: Iterable[tuple[int, torch.Tensor]], place_G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Over this rank's logits: the largest, ... x G; and 3 x ... x G: the sum of exponentials in units of that of the
    largest, the own logit (0 where another rank has it), the sum.
    """
    shape = rows_GC.shape[:-1]
    wide = torch.promote_types(rows_GC.dtype, torch.float32)
    largest = torch.full(shape, -torch.inf, dtype=wide, device=rows_GC.device)
    total = torch.zeros(3, *shape, dtype=wide, device=rows_GC.device)
    for first, part in chunks:
        logits = _logits(rows_GC, part.to(rows_GC.dtype))
        before, largest = largest, torch.maximum(largest, logits.amax(-1))
        here_H, place_H = _labels_in(place_G, first, part.shape[-2])
        total[1][..., here_H] += logits[..., here_H, place_H]
        total[2] += logits.sum(-1)
        total[0] = total[0] * (before - largest).exp() + (logits - largest[..., None]).exp_().sum(-1)
    return largest, total


def _places(label_G: torch.Tensor, own: IdentityRange, place_S: torch.Tensor | None) -> torch.Tensor:
    """The place of each row's identity among the S that the step uses of this range; outside of 0 to S - 1 where
    another rank has it.
    """
    place_G = label_G - own.start
    if place_S is None:
        return place_G
    here_G = (place_G >= 0) & (place_G < own.stop - own.start)
    return torch.searchsorted(place_S, place_G).masked_fill(~here_G, -1)


def _chunks(weight: torch.Tensor, chunk: int, place_S: torch.Tensor | None) -> Iterator[tuple[int, torch.Tensor]]:
    """The weight of the S identities by at most `chunk` of them, each part with the place of its first among the S.

    The parts are views of the weight where the step uses the whole range, else copies.
    """
    for first in range(0, weight.shape[-2] if place_S is None else len(place_S), chunk):
        if place_S is None:
            yield first, weight[..., first : first + chunk, :]
        else:
            yield first, weight.index_select(-2, place_S[first : first + chunk])


def _logits(rows_GC: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """... x G x c, float32 or float64."""
    logits = rows_GC @ part.mT
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _labels_in(place_G: torch.Tensor, first: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows whose identity is in the chunk of `length` from place `first` on, and its place in the chunk."""
    place_G = place_G - first
    (here_H,) = torch.nonzero((place_G >= 0) & (place_G < length), as_tuple=True)
    return here_H, place_G[here_H]


def _weight_gradient(logit_gradient: torch.Tensor, rows_GC: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """... x c x C; summed over the stack where its rows share one classifier."""
    if weight.dim() == rows_GC.dim():
        return logit_gradient.mT @ rows_GC
    return logit_gradient.flatten(0, -2).mT @ rows_GC.flatten(0, -2)


def _all_rows(rows: torch.Tensor) -> torch.Tensor:
    """... x B x C of every rank, in rank order: ... x G x C."""
    return distributed.gather_rows(rows.movedim(-2, 0).contiguous()).movedim(0, -2)


def _own_rows(values: torch.Tensor, dim: int) -> torch.Tensor:
    """This rank's rows out of all ranks'."""
    count = values.shape[dim] // distributed.world_size()
    return values.narrow(dim, distributed.rank() * count, count)
