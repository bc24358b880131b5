"""A training step of the whole model on synthetic tensors, in several variants, for the benchmark of steps."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch

from perf.bench_kernels import MIB
from perf.parts.machine import peak_resident_mib, resident_mib, restart_peak
from tacaf.datasets import SYSU_MM01
from tacaf.interfaces import DrawnPairs
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.pairs import draw_pairs
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.train.capture import captured
from tacaf.vocabulary import Branch

PER_IDENTITY, PAIR_GROUP, CLASSES = 4, 2, SYSU_MM01.training_identities[0]
PHASES = ("forward", "backward", "optimizer")
SMALL: dict[str, dict[str, Any]] = {
    "backbone": {"width": 16, "blocks": [1, 1, 1, 1]},
    "ipcam": {"node_width": 64, "attention_width": 32, "pair_width": 32},
}
WARM_UP = 3  # steps on the stream of a capture before the capture
SAME_LOSS = 1e-2  # relative tolerance between the losses of a replayed and a normal step


class Variant(NamedTuple):
    """One way to do the step."""

    name: str
    cmaam: bool = True
    ipcam: bool = True
    kernels: bool = True  # False: every op by its definition, in plain PyTorch
    channels_last: bool = False
    fused: bool = False
    compile: bool = False
    recompute: bool = False
    cudnn_benchmark: bool = False
    fused_norm: bool = False  # batch norm, residual sum and ReLU in one kernel
    graph: bool = False  # the whole step replayed from a CUDA graph


def batch(device: str, groups: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Noise images of three branches, visible first, with the labels of a planned batch."""
    identities = groups * PAIR_GROUP
    branch = torch.tensor([int(branch) for branch in Branch]).repeat_interleave(identities * PER_IDENTITY)
    label = torch.arange(identities).repeat_interleave(PER_IDENTITY).repeat(len(Branch))
    images = torch.randn(len(label), 3, height, width, generator=torch.Generator().manual_seed(0))
    found = {"label": label, "branch": branch, "group": label // PAIR_GROUP, "position": torch.arange(len(label))}
    return {name: tensor.to(device) for name, tensor in (found | {"images": images}).items()}


def pairs_of(data: dict[str, torch.Tensor], layers: Sequence[Literal[3, 4]]) -> DrawnPairs:
    """The pairs that the layers need, which the data path of a training draws in advance as well."""
    label, branch, group, position = (data[name].cpu() for name in ("label", "branch", "group", "position"))
    drawn = {
        layer: draw_pairs(label, branch, group, position, seed=0, epoch=0, step=0, layer=layer) for layer in layers
    }
    return DrawnPairs(drawn.get(3), drawn.get(4)).changed(lambda rows: rows.to(data["label"].device))


class Step:
    """One variant's model and optimiser; calling it does a step and keeps the milliseconds of each phase."""

    phases: tuple[str, ...] = PHASES

    def __init__(self, variant: Variant, data: dict[str, torch.Tensor], device: str, small: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        sections: dict[str, Any] = {name: dict(values) for name, values in SMALL.items()} if small else {}
        sections.setdefault("ipcam", {})["enabled"] = variant.ipcam
        sections["cmaam"] = {"enabled": variant.cmaam, "recompute": variant.recompute}
        sections["fused_norm"] = variant.fused_norm
        sections["kernels"] = "auto" if variant.kernels else "reference"
        self.variant, self.device = variant, device
        model = TacafNet(ModelConfig.model_validate(sections), CLASSES).to(device).train()
        self.pairs = pairs_of(data, model.config.pair_layers)
        self.optimizer = torch.optim.SGD(
            model.parameters(), 1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=variant.fused
        )
        self.model = torch.compile(model, dynamic=False) if variant.compile else model
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.data = data | {"images": data["images"].contiguous(memory_format=layout)}
        self.visible = int((data["branch"] != Branch.INFRARED).sum())
        self.bf16, self.criterion = bf16, TacafLoss(LossConfig())
        self.times: dict[str, list[float]] = {phase: [] for phase in (*PHASES, "step")}

    def forward(self) -> torch.Tensor:
        data = self.data
        with torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext():
            found = self.model(data["images"], data["label"], self.visible, *self.pairs)
            return self.criterion(found, data["label"])[0]

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The settings of this variant while a step is launched."""
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, self.variant.cudnn_benchmark
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def run(self, mark: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Do a step and call `mark` after each phase. Returns the loss, on the device."""
        with self.settings():
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.forward()
            mark()
            loss.backward()
            mark()
            self.optimizer.step()
            mark()
        return loss.detach()

    def __call__(self, keep: bool = True) -> float:
        """Do a step and wait for each of its phases. Returns the loss."""
        marks = [self._now()]
        loss = self.run(lambda: marks.append(self._now()))
        if keep:
            spans = [1000 * (later - sooner) for sooner, later in itertools.pairwise(marks)]
            for phase, span in zip(self.phases, spans, strict=True):
                self.times[phase].append(span)
            self.times["step"].append(sum(spans))
        return loss.item()

    def peak_mib(self) -> float:
        """The peak in MiB that a step adds to the memory used before it: allocated on a GPU, resident on a CPU.

        On a CPU only a process's first step shows it, because freed memory is kept for the next step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            allocated = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self(keep=False)
            return (torch.cuda.max_memory_allocated() - allocated) / MIB
        before = resident_mib()
        restart_peak()
        self(keep=False)
        return peak_resident_mib() - before

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class GraphedStep(Step):
    """A step that is replayed from a CUDA graph once `capture` was called. Its phases cannot be timed separately."""

    phases = ()
    _graph: torch.cuda.CUDAGraph | None = None

    def run(self, mark: Callable[[], None] = lambda: None) -> torch.Tensor:
        if self._graph is None:
            return super().run()
        self._graph.replay()
        return self._loss

    def __call__(self, keep: bool = True) -> float:
        began = self._now()
        loss = self.run()
        if keep:
            self.times["step"].append(1000 * (self._now() - began))
        return loss.item()

    def peak_mib(self) -> float:
        """The peak of the capture in MiB; a replay allocates nothing more."""
        return self.capture()

    def capture(self) -> float:
        """Capture a step. Returns its peak in MiB. The optimiser's learning rate is fixed in the graph.

        Raises RuntimeError if the replayed loss differs from that of a normal step.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.run()
            with self.settings(), torch.no_grad():
                expected = self.forward().item()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        graph, self._loss = captured(super().run, stream)
        peak_mib = (torch.cuda.max_memory_allocated() - before) / MIB
        self._graph = graph
        if not math.isclose(found := self(keep=False), expected, rel_tol=SAME_LOSS):
            raise RuntimeError(f"expected a replayed loss of {expected}, got {found}; the graph is not the step")
        return peak_mib
