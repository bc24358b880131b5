"""Batch normalisation over all ranks, which can also normalise an extra pass without updating running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kernels.batch_norm import batch_norm_relu
from tacaf.distributed import gather_rows, sum_over_ranks, world_size

NormMode = Literal["sync", "local"]


class _ExactNorm(torch.autograd.Function):
    """B x C x H x W, normalised by its own mean and variance, which are returned too, as float32 C each."""

    @staticmethod
    def forward(
        ctx: Any, features_BCHW: torch.Tensor, weight_C: torch.Tensor, bias_C: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean_C = features_BCHW.mean((0, 2, 3), dtype=torch.float32)
        variance_C = (features_BCHW - mean_C.view(1, -1, 1, 1)).square_().mean((0, 2, 3))
        ctx.save_for_backward(features_BCHW, weight_C, mean_C, (variance_C + eps).rsqrt())
        ctx.eps = eps
        ctx.mark_non_differentiable(mean_C, variance_C)
        normalised_BCHW = F.batch_norm(features_BCHW, mean_C, variance_C, weight_C, bias_C, eps=eps)
        return normalised_BCHW, mean_C, variance_C

    @staticmethod
    def backward(ctx: Any, d_normalised_BCHW: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        features_BCHW, weight_C, mean_C, scale_C = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            d_normalised_BCHW, features_BCHW, weight_C, None, None, mean_C, scale_C, True, ctx.eps, [True] * 3
        )
        return (*gradients, None)


class _SharedNorm(torch.autograd.Function):
    """A batch norm over all ranks' images with PyTorch's own GPU kernels: two collective calls, no copy in float32.

    nn.SyncBatchNorm runs the same kernels, but first drops ranks without images; to find them, the host waits for the
    GPU three times per norm. Here every rank has images.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        running: tuple[torch.Tensor | None, torch.Tensor | None],
        momentum: float,
        eps: float,
    ) -> torch.Tensor:
        features = features.contiguous(memory_format=_layout(features))
        mean_C, scale_C = torch.batch_norm_stats(features, eps)
        count = mean_C.new_full((1,), features.numel() // features.shape[1])
        gathered_RX = gather_rows(torch.cat([mean_C, scale_C, count])[None])
        mean_RC, scale_RC, count_R1 = gathered_RX.split([len(mean_C), len(mean_C), 1], dim=1)
        count_R = count_R1.flatten()
        mean_C, scale_C = torch.batch_norm_gather_stats_with_counts(
            features, mean_RC.contiguous(), scale_RC.contiguous(), running[0], running[1], momentum, eps, count_R
        )
        ctx.save_for_backward(features, weight_C, mean_C, scale_C, count_R.int())
        return torch.batch_norm_elemt(features, weight_C, bias_C, mean_C, scale_C, eps)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, weight_C, mean_C, scale_C, count_R = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_layout(features))
        # The gradients of the weights are this rank's; the engine averages them over ranks, like all others.
        sum_C, along_C, d_weight_C, d_bias_C = torch.batch_norm_backward_reduce(
            gradient, features, mean_C, scale_C, weight_C, *ctx.needs_input_grad[:3]
        )
        sum_C, along_C = sum_over_ranks(torch.cat([sum_C, along_C])).chunk(2)
        d_features = torch.batch_norm_backward_elemt(
            gradient, features, mean_C, scale_C, weight_C, sum_C, along_C, count_R
        )
        gradients = zip((d_weight_C, d_bias_C), ctx.needs_input_grad[1:3], strict=True)
        return d_features, *(one if needed else None for one, needed in gradients), None, None, None


def _layout(features: torch.Tensor) -> torch.memory_format:
    """Channels-last for maps that have this layout; contiguous for everything else."""
    last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _RankNorm(_BatchNorm):
    """A batch norm with a mode, which decides over which images training statistics are computed.

    `sync`: the images of all ranks, with the same result as one process with the whole batch; `local`: each rank's own.
    Evaluation uses the running statistics, as always.

    With one rank, the native op runs; with several, PyTorch's kernels on a GPU, and plain sums on a CPU, which has no
    such kernels. `fused`: training passes over maps run kernels.batch_norm instead, which also adds the residual and
    applies the ReLU.
    """

    def __init__(self, width: int, mode: NormMode, eps: float = 1e-5, fused: bool = False) -> None:
        super().__init__(width, eps)
        self.mode = mode
        self.fused = fused
        # Set by `own_statistics`. A pass reaches a norm through containers such as the backbone's layer 4, whose
        # forward takes only the features, so no argument can tell which pass this is.
        self.running_frozen = False

    def forward(self, features: torch.Tensor, residual: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        """The normalised features plus `residual`; with `relu`, negative values become 0."""
        if self.fused and self.training and features.dim() == 4 and not torch.compiler.is_compiling():
            return self._fused(features, residual, relu)
        normalised = self._normalise(features)
        if residual is not None:
            normalised = normalised + residual
        return F.relu(normalised, inplace=True) if relu else normalised

    def _fused(self, features_BCHW: torch.Tensor, residual_BCHW: torch.Tensor | None, relu: bool) -> torch.Tensor:
        shared = self.mode == "sync" and world_size() > 1
        result_BHWC, mean_C, variance_C = batch_norm_relu(
            features_BCHW.permute(0, 2, 3, 1),
            self.weight,
            self.bias,
            self.eps,
            None if residual_BCHW is None else residual_BCHW.to(features_BCHW.dtype).permute(0, 2, 3, 1),
            relu,
            gather_rows if shared else None,
        )
        if not self.running_frozen:
            count = (world_size() if shared else 1) * features_BCHW.numel() / features_BCHW.shape[1]
            self._remember(mean_C, variance_C * (count / (count - 1)))
        return result_BHWC.permute(0, 3, 1, 2)

    def _normalise(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        self._check_input_dim(features)
        if self.mode == "sync" and world_size() > 1:
            return self._synchronised(features) if features.device.type == "cpu" else self._shared(features)
        on_cpu = features.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu and features.dim() == 4 and not features.is_contiguous():
            return self._exact(features)
        if self.running_frozen:
            return F.batch_norm(features, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(features)

    def _synchronised(self, features: torch.Tensor) -> torch.Tensor:
        """Two sums over ranks, for the mean, then for the variance of the centred values, so that nothing cancels."""
        dims = [0, *range(2, features.dim())]
        shape = [1, -1, *[1] * (features.dim() - 2)]
        values = features.float()
        own_count = values.new_tensor([values.numel() / values.shape[1]])
        totals = sum_over_ranks(torch.cat([values.sum(dims), own_count]))
        count = totals[-1].detach()
        mean_C = totals[:-1] / count
        centred = values - mean_C.view(shape)
        variance_C = sum_over_ranks(centred.square().sum(dims)) / count
        if not self.running_frozen:
            self._remember(mean_C.detach(), variance_C.detach() * (count / (count - 1)))
        scale_C = self.weight * (variance_C + self.eps).rsqrt()
        return (centred * scale_C.view(shape) + self.bias.view(shape)).to(features.dtype)

    def _shared(self, features: torch.Tensor) -> torch.Tensor:
        running: tuple[Any, Any] = (None, None) if self.running_frozen else (self.running_mean, self.running_var)
        if not self.running_frozen:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        normalised: torch.Tensor = _SharedNorm.apply(
            features, self.weight, self.bias, running, self._momentum, self.eps
        )
        return normalised

    @property
    def _momentum(self) -> float:
        return self.momentum if self.momentum is not None else 0.1

    def _exact(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        """The native op with separately computed statistics.

        On a CPU, the native op sums channels-last maps in a single fp32 number per channel. Over 36,000 positions its
        error is 5e-6, a hundred times that of contiguous maps or `sync`.
        """
        normalised_BCHW: torch.Tensor
        normalised_BCHW, mean_C, variance_C = _ExactNorm.apply(features_BCHW, self.weight, self.bias, self.eps)
        if not self.running_frozen:
            count = features_BCHW.numel() / features_BCHW.shape[1]
            self._remember(mean_C, variance_C * (count / (count - 1)))
        return normalised_BCHW

    def _remember(self, mean_C: torch.Tensor, unbiased_variance_C: torch.Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean_C, self._momentum)
        self.running_var.lerp_(unbiased_variance_C, self._momentum)
        self.num_batches_tracked.add_(1)


class BatchNorm1d(_RankNorm, nn.BatchNorm1d):
    """`_RankNorm` over B x C."""


class BatchNorm2d(_RankNorm, nn.BatchNorm2d):
    """`_RankNorm` over B x C x H x W."""


@contextmanager
def own_statistics(*modules: nn.Module) -> Iterator[None]:
    """Inside the block, training passes through `modules` use their own batch's statistics and update no running ones.

    This is for CMAAM's identity-consistency passes: in LbA, reconstructed features influence the statistics used at
    test time; here they do not (method §4, ours).
    """
    norms = [part for module in modules for part in module.modules() if isinstance(part, _RankNorm)]
    for norm in norms:
        norm.running_frozen = True
    try:
        yield
    finally:
        for norm in norms:
            norm.running_frozen = False
