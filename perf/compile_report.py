"""Compiles every Triton kernel without a GPU, and reports its registers, shared memory, spills and float64 lines.

    python perf/compile_report.py [--arch 80 90 100] [--choices all] --json FILE

The launchers run on tensors without storage. Their launches are intercepted and compiled for each architecture, so the
report has exactly the arguments, alignments and tuning choices of a real call. The exit status is 1 if a kernel spills
more than SPILL_LIMIT, needs more shared memory than the chip has, or computes in float64, which no kernel should.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # so that it runs in a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tacaf.start import start

if __name__ == "__main__":
    start("perf.compile_report")

import contextlib
import functools
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.alignment import kernel as alignment
from kernels.alignment.tile_kernel import Choice
from kernels.batch_norm import kernel as batch_norm
from kernels.common.launch_kernel import triton_launches
from kernels.gem_pyramid import kernel as gem_pyramid
from kernels.ring_aggregate import kernel as ring_aggregate
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json

# tf32: float32 inputs whose products may be TF32 (torch.set_float32_matmul_precision("high")); fp32: exact
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block may ask for (CUDA programming guide)
# Bytes that a kernel may spill. The tiles were chosen with Triton 3.6 and 3.9, which spill nothing. The CUDA build of
# PyTorch 2.13 needs Triton 3.7.1, which spills up to 72 bytes in 4 of the alignment's 144 kernels (by this script; what
# that costs on a GPU was not measured).
SPILL_LIMIT = 72 if triton.__version__.startswith("3.7.") else 0
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


def _gem_pyramid(dtype: torch.dtype, choice: gem_pyramid.Choice) -> None:
    features, levels = torch.empty(64, 18, 9, 2048, dtype=dtype, device="meta"), (1, 3, 6)
    pooled = gem_pyramid.forward(features, levels, 3.0, 1e-6, choice)
    gem_pyramid.backward(pooled, features, pooled, levels, 3.0, 1e-6, choice)


def _batch_norm(dtype: torch.dtype, choice: batch_norm.Choice) -> None:
    """The end of a residual block, and a batch norm inside one."""
    features, weight = torch.empty(15552, 2048, dtype=dtype, device="meta"), torch.empty(2048, device="meta")
    mean, _, scale = batch_norm.moments(features, 1e-5, choice)
    fixed = ((mean, scale), weight, weight)
    for added in (features, None):
        batch_norm.normalise(features, added, *fixed, True, choice)
        batch_norm.gradient_sums(features, features, added, *fixed, True, choice)
        batch_norm.gradient(features, features, *fixed, (mean, mean, 15552), added is None, choice)


def _ring_aggregate(dtype: torch.dtype, choice: tuple[int, int]) -> None:
    parts, projection = (torch.empty(64, 6, width, dtype=dtype, device="meta") for width in (512, 128))
    ring_aggregate.forward(parts, projection, projection, 2, choice)
    ring_aggregate.backward(parts, parts, projection, projection, 2, choice)


def _align(dtype: torch.dtype, choice: Choice) -> None:
    features, mask = torch.empty(64, 162, 2048, dtype=dtype, device="meta"), torch.empty(64, 162, device="meta")
    rows = torch.empty(64, dtype=torch.int64, device="meta")
    inputs = (features, mask, rows, rows, rows, 50.0)
    reconstruction, near, far, _, *saved = alignment.forward(*inputs, choice)
    if choice.warp.parts > 1:
        alignment.forward(*inputs, choice._replace(warp=choice.warp._replace(parts=1)))
    needed: tuple[Any, ...] = (reconstruction, near, far, *inputs, reconstruction, *saved, choice)
    alignment.backward(*needed)


# op -> (its launches in a dtype with a tuning choice, its choices for a dtype and an architecture; the first is used)
OPS: dict[str, tuple[Callable[..., None], Callable[[torch.dtype, int], tuple[Any, ...]]]] = {
    "align": (_align, lambda dtype, arch: alignment.choices(dtype, arch // 10)),
    "batch_norm": (_batch_norm, lambda dtype, arch: batch_norm.CHOICES),
    "gem_pyramid": (_gem_pyramid, lambda dtype, arch: gem_pyramid.CHOICES),
    "ring_aggregate": (_ring_aggregate, lambda dtype, arch: ring_aggregate.CHOICES),
}


def caught(run: Callable[[], None]) -> list[Launch]:
    """The kernel launches of `run`, which are intercepted and not made."""
    launches: list[Launch] = []
    original = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **kwargs: launches.append((self, args, kwargs))
    try:
        with triton_launches():
            run()
    finally:
        JITFunction.run = original
    return launches


def source(kernel: JITFunction, args: tuple[Any, ...]) -> ASTSource:
    """What Triton would compile for these arguments: types, constants, divisibility by 16."""
    signature, constants, attributes = {}, {}, {}
    for i, (param, value) in enumerate(zip(kernel.params, args, strict=True)):
        if param.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[param.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[param.name] = f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
        elif isinstance(value, int):
            signature[param.name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[param.name] = "fp32"
    return ASTSource(kernel, signature, constants, attributes)


def compiled_with_log(kernel_source: ASTSource, arch: int, options: dict[str, Any]) -> tuple[Any, str]:
    """The compiled kernel and the log of NVIDIA's assembler. The cache is not used, because it keeps no log."""
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True
        compiled = triton.compile(kernel_source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled, log.getvalue()


def usage(log: str) -> tuple[int, int]:
    """(registers, bytes spilled: stores and loads) from the assembler's log."""
    registers = re.search(r"Used (\d+) registers", log)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    assert registers, log
    assert len(spilled) == 2, log
    return int(registers[1]), sum(map(int, spilled))


def rows(op: str, dtype: str, arch: int, every_choice: bool) -> Iterator[dict[str, Any]]:
    """One row per kernel of the op in this dtype, for this architecture and its tuning choices."""
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    launch, choices_for = OPS[op]
    choices = choices_for(DTYPES[dtype], arch)
    for choice in choices if every_choice else choices[:1]:
        known = set()
        for kernel, args, options in caught(functools.partial(launch, DTYPES[dtype], choice)):
            kernel_source = source(kernel, args)
            key = str((kernel.__name__, kernel_source.signature, kernel_source.constants, kernel_source.attrs, options))
            if key in known:
                continue
            known.add(key)
            compiled, log = compiled_with_log(kernel_source, arch, options)
            registers, spill = usage(log)
            yield {
                "op": op,
                "kernel": kernel.__name__,
                "dtype": dtype,
                "arch": arch,
                "choice": list(choice),
                "flags": _flags(kernel, args),
                "registers": registers,
                "shared_bytes": compiled.metadata.shared,
                "spill_bytes": spill,
                "float64_lines": compiled.asm["ptx"].count(".f64"),
                "warps": compiled.metadata.num_warps,
                "tensor_cores": tensor_cores(compiled.asm["ptx"]),
                "triton": triton.__version__,
            }


def _flags(kernel: JITFunction, args: tuple[Any, ...]) -> dict[str, bool]:
    """The kernel's constants that are true or false, by which its forms differ."""
    return {param.name: value for param, value in zip(kernel.params, args, strict=True) if isinstance(value, bool)}


def tensor_cores(ptx: str) -> str:
    """The matrix instruction that the kernel uses, if any."""
    return next((name for name in ("tcgen05.mma", "wgmma.mma", "mma.sync") if name in ptx), "none")


def problem_with(row: dict[str, Any]) -> str | None:
    """Why a kernel is not good enough, or None."""
    if row["spill_bytes"] > SPILL_LIMIT:
        return "spills"
    if row["shared_bytes"] > SHARED_LIMIT[row["arch"]]:
        return "too much shared memory"
    return "float64" if row["float64_lines"] else None


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--op", nargs="+", default=list(OPS), choices=list(OPS))
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument(
        "--choices", default="default", choices=["default", "all"], help="the tuning choices to compile"
    )
    parser.add_argument("--json", type=to_path, required=True)
    args = parser.parse_args(argv)
    report: list[dict[str, Any]] = []
    for op, arch, dtype in itertools.product(args.op, args.arch, args.dtype):
        report += rows(op, dtype, arch, args.choices == "all")
    write_json(args.json, report)
    bad = [row for row in report if problem_with(row)]
    for row in report:
        mark = f"  <-- {problem_with(row)}" if problem_with(row) else ""
        print(*(f"{row[key]}" for key in row if key != "triton"), mark)
    return 1 if bad else 0
