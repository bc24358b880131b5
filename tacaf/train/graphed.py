"""The computation of a training step (`step.py`), captured once in a CUDA graph and then replayed.

A step launches more than a thousand kernels, and the host may take longer to launch them one by one than the GPU to run
them; a graph launches them all at once. It uses fixed memory: every batch is copied into the buffers of the captured
one, and the gradients are always in the same tensors. The optimiser's step is not part of the graph, because the
learning rates change.

A capture executes nothing, and the steps before it are ordinary steps of the run, so the graph does not change results.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from tacaf import distributed
from tacaf.interfaces import Batch
from tacaf.model.classifier import Classifier
from tacaf.train.capture import captured, reason_of
from tacaf.train.config import Config
from tacaf.train.step import Compute, Computed

WARM_UP = 3  # steps before the capture, in which kernels are compiled, and cuDNN and the allocator settle


def with_graph(compute: Compute, engine: Any, warn: Callable[[str], None]) -> Compute:
    """`compute`, captured and replayed if that is possible; otherwise `compute` itself, and `warn` gets the reason."""
    if reason := obstacle(engine.module):
        warn(f"train.cuda_graph: {reason}; training continues without a CUDA graph")
        return compute
    learning = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]

    def compute_alone(batch: Batch) -> Computed:
        with engine.no_sync():  # with one rank, there are no gradients to add
            computed = compute(batch, True)
        for parameter in learning:
            if parameter.grad is None:  # the engine's reduction would do the same
                parameter.grad = torch.zeros_like(parameter)
        return computed

    graphed = GraphedStep(compute_alone, learning, warn)

    def replayed(batch: Batch, last: bool) -> Computed:
        assert last, "the configuration refuses a CUDA graph with accumulated gradients"
        return graphed(batch)

    return replayed


def slow_norms(config: Config) -> str | None:
    """Why `model.fused_norm` makes the steps of this run slower, or None if it does not."""
    if not (config.model.fused_norm and torch.cuda.is_available()) or config.train.cuda_graph or config.train.compile:
        return None
    return (
        "model.fused_norm: without train.cuda_graph it makes a step slower, because the host launches more kernels one"
        " by one; set train.cuda_graph: true or model.fused_norm: false"
    )


def obstacle(model: torch.nn.Module) -> str | None:
    """Why the steps of this run cannot be captured, apart from its configuration; None if there is no known reason."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if distributed.world_size() > 1:
        return f"the host starts the summation of {distributed.world_size()} ranks' gradients during backward"
    if any(isinstance(module, Classifier) and len(module) > 1 for module in model.modules()):
        return "classifiers in chunks are computed again in backward, which is not tested in a graph"
    return None


class GraphedStep:
    """A step that runs normally a few times, is then captured, and replayed from then on.

    Batches of another shape run normally, and so do all batches if the capture fails.
    """

    def __init__(
        self,
        compute: Callable[[Batch], Computed],
        parameters: Iterable[torch.nn.Parameter],
        warn: Callable[[str], None],
    ) -> None:
        """`compute` leaves gradients in `parameters`, which have none before. `warn` gets the reason of a failure."""
        self._compute, self._parameters, self._warn = compute, list(parameters), warn
        self._warm_up = WARM_UP
        self._stream = torch.cuda.Stream()
        self._captured: _Captured | None = None
        self._failed = False

    def __call__(self, batch: Batch) -> Computed:
        if self._warm_up > 0:
            self._warm_up -= 1
            return self._beside(batch)
        if self._captured is None and not self._failed:
            self._captured = self._capture(batch)
        if self._captured is None or _layout(batch) != _layout(self._captured.batch):
            return self._compute(batch)
        for buffer, tensor in zip(_tensors(self._captured.batch), _tensors(batch), strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self._captured.graph.replay()
        for parameter, gradient in zip(self._parameters, self._captured.gradients, strict=True):
            parameter.grad = gradient  # the engine has removed it after the last step
        return self._captured.computed

    def _beside(self, batch: Batch) -> Computed:
        """Run the step on the capture's stream, since autograd remembers on which stream it first used a parameter."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            computed = self._compute(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return computed

    def _capture(self, batch: Batch) -> "_Captured | None":
        """The step of such a batch as a graph, or None, with a warning, if it cannot be captured."""
        batch = _copied(batch)
        self._clear_gradients()
        try:
            graph, computed = captured(lambda: self._compute(batch), self._stream)
        except Exception as error:
            self._failed = True
            self._clear_gradients()
            self._warn(
                f"train.cuda_graph: the step could not be captured: {reason_of(error)}; training continues without a"
                " CUDA graph"
            )
            return None
        return _Captured(graph, batch, computed, [parameter.grad for parameter in self._parameters])

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class _Captured(NamedTuple):
    """A captured step, and the memory that every replay reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    computed: Computed
    gradients: list[torch.Tensor | None]


def _tensors(batch: Batch) -> list[torch.Tensor]:
    """The tensors that a step reads on the device."""
    pairs = [columns for columns in batch.pairs if columns is not None]
    return [batch.images_BCHW, batch.label_B, *(column for columns in pairs for column in columns)]


def _layout(batch: Batch) -> tuple[Any, ...]:
    """The properties of a batch that a graph fixes: everything except the values."""
    shapes = [(tensor.shape, tensor.dtype) for tensor in _tensors(batch)]
    return batch.visible, [pairs is None for pairs in batch.pairs], shapes


def _copied(batch: Batch) -> Batch:
    """The batch with copies of its tensors."""
    return batch._replace(
        images_BCHW=batch.images_BCHW.clone(),
        label_B=batch.label_B.clone(),
        pairs=batch.pairs.changed(torch.clone),
    )
