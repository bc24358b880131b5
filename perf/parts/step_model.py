"""The parts of a whole training step, for the performance model: ResNet-50, 96 images of 288x144, bf16.

A ResNet in training is bound by the bytes of its batch norms, ReLUs and sums, not by its convolutions.
"""

from dataclasses import dataclass

# Seven passes over all outputs of convolutions forward (2.0 GB in bf16), about twelve backward, and the residual sums.
BACKBONE_BYTES = 42e9
SECOND_PASS_BYTES = 7e9  # layer 4 once more, over CMAAM's reconstructions
# What kernels/batch_norm spares (its README counts the maps): five maps of each norm with a ReLU, of which a ResNet-50
# writes 1.73 GB a pass (of 2.01 GB by all norms), and 0.29 GB in the second pass.
FUSED_BYTES = 5 * (1.73e9 + 0.29e9)
COMPILED_BYTES = 30e9  # batch norm, ReLU and sum fused; estimated
ELEMENTWISE_EFFICIENCY = 0.77  # of a copy's rate, for PyTorch's own channels-last batch norm; assumed
WHOLE_FLOPS, BASELINE_FLOPS = (
    4.343e12,
    2.937e12,
)  # counted by tacaf/train/flops.py; the baseline is without both modules
CONVOLUTION_FLOPS_PER_S = 370e12  # what ResNet's convolutions reach, 7x7 stems and narrow layers included; assumed
# Of IPCAM, the heads, the losses and CMAAM's masks, forward and backward: counted by perf/parts/step_launches.py.
WHOLE_LAUNCHES, BASELINE_LAUNCHES = 249, 65
LAUNCH_MS = 1 / 300  # of one of these with the gap to the next; assumed
OPTIMIZER_MS = 0.15  # fused SGD; assumed
STALLS_MS = 5.0  # the GPU waits where the host copies labels, losses and norms; assumed
DEFINITIONS_MS = {"H100": 22.0, "H200": 17.0}  # CMAAM by its definition in float32 without TF32; estimated


@dataclass(frozen=True)
class Step:
    """One way to train. `alignment`: "kernels", "definitions" or None. `measured_as`: bench_train.py's name, if any."""

    name: str
    measured_as: str | None
    moved_bytes: float
    flops: float
    alignment: str | None = "kernels"
    launches: int = WHOLE_LAUNCHES
    stalls_ms: float = 0.0


STEPS = (
    Step(
        "baseline, channels-last, fused",
        "baseline, kernels, channels-last, fused",
        BACKBONE_BYTES,
        BASELINE_FLOPS,
        alignment=None,
        launches=BASELINE_LAUNCHES,
    ),
    Step(
        "whole, definitions",
        "whole, definitions",
        BACKBONE_BYTES + SECOND_PASS_BYTES,
        WHOLE_FLOPS,
        alignment="definitions",
        stalls_ms=STALLS_MS,
    ),
    Step(
        "whole, kernels, host stalls",
        "whole, kernels, channels-last, fused, cudnn.benchmark",
        BACKBONE_BYTES + SECOND_PASS_BYTES,
        WHOLE_FLOPS,
        stalls_ms=STALLS_MS,
    ),
    Step(
        "whole, kernels, no host stall",
        "whole, kernels, channels-last, fused, cudnn.benchmark, graph",
        BACKBONE_BYTES + SECOND_PASS_BYTES,
        WHOLE_FLOPS,
    ),
    Step(
        "whole, kernels, no host stall, fused norm",
        "whole, kernels, channels-last, fused, cudnn.benchmark, fused norm, graph",
        BACKBONE_BYTES + SECOND_PASS_BYTES - FUSED_BYTES,
        WHOLE_FLOPS,
    ),
    Step(
        "whole, kernels, compiled",
        "whole, kernels, channels-last, fused, cudnn.benchmark, compile, graph",
        COMPILED_BYTES,
        WHOLE_FLOPS,
    ),
)


def step_ms(step: Step, gpu: str, copy_bytes_per_s: float, alignment_ms: float) -> float:
    """The sum of the parts: little of a step overlaps on one stream."""
    aligned = {"kernels": alignment_ms, "definitions": DEFINITIONS_MS[gpu], None: 0.0}[step.alignment]
    moved_ms = 1000 * step.moved_bytes / (copy_bytes_per_s * ELEMENTWISE_EFFICIENCY)
    convolutions_ms = 1000 * step.flops / CONVOLUTION_FLOPS_PER_S
    launched_ms = step.launches * LAUNCH_MS
    return moved_ms + convolutions_ms + aligned + launched_ms + OPTIMIZER_MS + step.stalls_ms
