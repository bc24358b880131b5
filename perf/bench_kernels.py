"""Times the kernels against plain PyTorch and torch.compile.

    python perf/bench_kernels.py [--op OP] [--dtype bf16] [--device cpu] [--images 64] [--json FILE]

Every op is first compared with its definition in float64; no figure is printed where that fails. Bytes and FLOPs are
counted by formula (cases.py), the ceilings (copy, matrix product) measured in the same run. On a GPU the launches are
also replayed from a CUDA graph, so that launch gaps show. `--device cpu` times the CPU path the same way.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from perf.cases import Case, Tensors, both_case, cases
from tacaf.logs import environment

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PASSES = ("forward", "backward", "both")
ERROR_FLOOR = {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}  # of the largest number
COLUMNS = ("op", "provider", "pass", "dtype", "shape", "p20_ms", "p50_ms", "p80_ms", "graph_ms", "ratio_to_eager",
           "peak_mib", "saved_mib", "bytes", "flops", "share_of_ceiling")  # fmt: skip
MIB = 2**20
H200 = {"copy_bytes_per_s": 4.3e12, "matrix_flops_per_s": 790e12}  # measured on such a card, for `--predict` only


def leaves_of(case: Case, dtype: torch.dtype, device: str) -> tuple[Tensors, Tensors]:
    """Fresh inputs that want gradients, and the constants."""
    inputs, constants = case.inputs(dtype, device)
    return tuple(tensor.requires_grad_() for tensor in inputs), constants


def differentiable(result: torch.Tensor | Tensors) -> list[torch.Tensor]:
    outputs = result if isinstance(result, tuple) else (result,)
    return [output for output in outputs if output.requires_grad]


def runs(function: Callable, leaves: Tensors, constants: Tensors) -> dict[str, Callable[[], Any]]:
    """The three passes as functions without arguments; `backward` keeps the graph of one forward."""
    outputs = differentiable(function(*leaves, *constants))
    draw = torch.Generator().manual_seed(5)
    grads = [torch.randn(output.shape, generator=draw).to(output) for output in outputs]

    def both() -> Any:
        return torch.autograd.grad(differentiable(function(*leaves, *constants)), leaves, grads)

    return {
        "forward": lambda: function(*leaves, *constants),
        "backward": lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True),
        "both": both,
    }


def errors(case: Case, dtype: torch.dtype, device: str, function: Callable) -> list[float]:
    """Of every output and gradient, the largest error against the definition in float64, relative to its largest."""
    leaves, constants = leaves_of(case, dtype, device)
    exact_leaves = tuple(tensor.detach().double().requires_grad_() for tensor in leaves)
    exact_constants = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in constants)
    found, exact = differentiable(function(*leaves, *constants)), differentiable(
        case.definition(*exact_leaves, *exact_constants)
    )  # fmt: skip
    draw = torch.Generator().manual_seed(5)
    grads = [torch.randn(output.shape, generator=draw).to(device) for output in found]
    pairs = list(zip(found, exact, strict=True))
    pairs += zip(
        torch.autograd.grad(found, leaves, [grad.to(output) for grad, output in zip(grads, found, strict=True)]),
        torch.autograd.grad(exact, exact_leaves, [grad.to(output) for grad, output in zip(grads, exact, strict=True)]),
        strict=True,
    )
    return [((f.double() - e).abs().max() / e.abs().max()).item() for f, e in pairs]


def check(case: Case, dtype: torch.dtype, device: str) -> None:
    """Stop unless our error is at most twice the plain formulas' in this dtype, or below what the dtype resolves."""
    ours, eager = (errors(case, dtype, device, function) for function in (case.ours, case.eager))
    for place, (error, allowed) in enumerate(zip(ours, eager, strict=True)):
        if not error <= max(2 * allowed, ERROR_FLOOR[dtype]):
            raise SystemExit(
                f"error: {case.name} {dtype}: output {place}: expected an error of at most {2 * allowed:.1e} (twice "
                f"plain PyTorch's), got {error:.1e}; no figure on a wrong result"
            )


def quantiles(times_ms: list[float]) -> tuple[float, float, float]:
    ordered = sorted(times_ms)
    return tuple(ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))  # type: ignore[return-value]


def time_ms(run: Callable[[], Any], device: str, seconds: float) -> list[float]:
    """Times of single calls for about `seconds`, at least five; on a GPU by events, L2 flushed before each."""
    if device == "cuda":
        from triton.testing import do_bench

        return do_bench(run, warmup=50, rep=int(1000 * seconds), return_mode="all")
    run()
    times, began = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times


def graph_ms(run: Callable[[], Any], device: str) -> float | None:
    """Replayed from a CUDA graph; None where the call cannot be captured."""
    if device != "cuda":
        return None
    from triton.testing import do_bench_cudagraph

    try:
        return float(do_bench_cudagraph(run, rep=50))
    except RuntimeError:  # compiled code and the autograd of plain formulas may synchronise
        torch.cuda.synchronize()
        return None


def saved_mib(function: Callable, leaves: Tensors, constants: Tensors) -> float:
    """What autograd keeps for backward, each storage once, the inputs not counted."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*leaves, *constants)}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(*leaves, *constants)
    del result
    return sum(kept.values()) / MIB


def peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """The allocator's peak above what lay there before; on a CPU it is measured in processes of their own."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def cpu_peak_mib(op: str, place: int, dtype: str, provider: str) -> float:
    """Peak resident memory of one `both` in a fresh process, above that process's memory before it."""
    command = [
        sys.executable,
        __file__,
        "--device",
        "cpu",
        "--op",
        op,
        "--dtype",
        dtype,
        "--peak-of",
        provider,
        str(place),
    ]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(case: Case, dtype: torch.dtype, provider: str) -> None:
    """The child's side of `cpu_peak_mib`."""
    leaves, constants = leaves_of(case, dtype, "cpu")
    small = both_case(2, 9, 8)
    runs(small.ours, *leaves_of(small, dtype, "cpu"))["both"]()  # so that no library is loaded inside the measurement
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status("VmRSS")
    runs(case.ours if provider == "ours" else case.eager, leaves, constants)["both"]()
    print((_status("VmHWM") - before) / 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1])


def ceilings(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second of a copy (read and written) and FLOPs a second of a square matrix product, measured now."""
    size, side = (2**29, 8192) if device == "cuda" else (2**28, 2048)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    copy_ms = min(time_ms(lambda: target.copy_(source), device, 1.0))
    product_ms = min(time_ms(lambda: left @ right, device, 1.0))
    return {"copy_bytes_per_s": 2 * size / copy_ms * 1000, "matrix_flops_per_s": 2 * side**3 / product_ms * 1000}


def providers_of(case: Case, leaves: Tensors, constants: Tensors, device: str) -> dict[str, Callable]:
    """What is timed, by name; PyTorch's fused attention only where one of its kernels takes the head dimension."""
    providers = {"eager": case.eager}
    if device == "cuda":
        providers["compiled"] = torch.compile(case.eager)
        if case.sdpa is not None:
            fused = fused_only(case.sdpa)
            try:
                runs(fused, leaves, constants)["both"]()
                providers["sdpa"] = fused
            except RuntimeError as error:
                print(f"{case.name}: sdpa: not measured: {str(error).splitlines()[0]}", flush=True)
    providers["triton" if device == "cuda" else "cpu path"] = case.ours
    return providers


def fused_only(function: Callable) -> Callable:
    """The function with PyTorch's unfused attention switched off, so that it fails rather than fall back."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def call(*tensors: torch.Tensor) -> Any:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
            return function(*tensors)

    return call


def measure(
    case: Case, place: int, dtype: str, device: str, ceiling: dict[str, float], seconds: float
) -> Iterator[dict]:
    """A row for every provider and pass."""
    leaves, constants = leaves_of(case, DTYPES[dtype], device)
    providers = providers_of(case, leaves, constants, device)
    eager_ms: dict[str, float] = {}
    for provider, function in providers.items():
        passes = runs(function, leaves, constants)
        kept = saved_mib(function, leaves, constants)
        for name in PASSES:
            p20, p50, p80 = quantiles(time_ms(passes[name], device, seconds))
            eager_ms.setdefault(name, p50)
            both = name == "both"
            moved = sum(case.moved[one](leaves[0].element_size()) for one in (PASSES[:2] if both else (name,)))
            flops = sum(case.flops[one] for one in (PASSES[:2] if both else (name,)))
            least_s = max(moved / ceiling["copy_bytes_per_s"], flops / ceiling["matrix_flops_per_s"])
            peak = peak_mib(passes[name], device)
            if both and device == "cpu" and provider != "compiled":
                peak = cpu_peak_mib(case.op, place, dtype, "eager" if provider == "eager" else "ours")
            yield {
                "op": case.op, "provider": provider, "pass": name, "dtype": dtype, "shape": case.shape,
                "p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "graph_ms": graph_ms(passes[name], device),
                "ratio_to_eager": eager_ms[name] / p50, "peak_mib": peak, "saved_mib": kept,
                "bytes": moved, "flops": flops, "share_of_ceiling": 1000 * least_s / p50,
            }  # fmt: skip


def text(row: dict) -> str:
    shape = " ".join(f"{key}={value}" for key, value in row["shape"].items())
    peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
    graph = "-" if row["graph_ms"] is None else f"{row['graph_ms']:.3f}"
    return (
        f"{row['op']:15} {shape:28} {row['dtype']:5} {row['provider']:9} {row['pass']:9} {row['p50_ms']:10.3f} ms  "
        f"graph {graph:>8}  x{row['ratio_to_eager']:.2f}  peak {peak:>6} MiB  saved {row['saved_mib']:7.1f} MiB  "
        f"{100 * row['share_of_ceiling']:.0f} % of the ceiling"
    )


def prediction() -> str:
    """A table of what the counted bytes and FLOPs allow at an H200's measured ceilings; nothing in it was timed."""
    lines = [
        "# Kernels on an H200: not measured",
        "",
        "No GPU was at hand. *Predicted least* is the larger of bytes / 4.3 TB/s (copy) and FLOPs / 790 TFLOP/s (bf16",
        "matrix product), the ceilings measured on such a card; no kernel can be faster, and how near ours come is not",
        "measured. bf16. Made by `python perf/bench_kernels.py --predict`; `python perf/gpu_suite.py` measures.",
        "",
        "| op | shape | pass | MiB moved | GFLOP | predicted least ms | measured ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases("cuda"):
        shape = " ".join(f"{key}={value}" for key, value in case.shape.items())
        for name in PASSES[:2]:
            moved, flops = case.moved[name](2), case.flops[name]
            least_ms = 1000 * max(moved / H200["copy_bytes_per_s"], flops / H200["matrix_flops_per_s"])
            cells = (
                case.op,
                shape,
                name,
                f"{moved / MIB:.1f}",
                f"{flops / 1e9:.1f}",
                f"{least_ms:.4f}",
                "not measured",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=("alignment", "soft_align", "align_distance", "gem_pyramid", "ring_aggregate"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="only cases of this many images")
    parser.add_argument("--seconds", type=float, default=0.2, help="about how long a provider's pass is timed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="no figures: every case in every dtype against float64")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--predict", type=Path, metavar="FILE", help="no run: the least times on an H200, as a table")
    wanted = parser.parse_args(argv)
    if wanted.predict:
        wanted.predict.write_text(prediction())
        return 0
    if wanted.device == "cuda" and not torch.cuda.is_available():
        print("error: expected a GPU for --device cuda, found none; use --device cpu", file=sys.stderr)
        return 2
    dtype = wanted.dtype or ("bf16" if wanted.device == "cuda" else "fp32")
    chosen = [case for case in cases(wanted.device) if wanted.op in (None, case.op)]
    if wanted.peak_of:
        print_peak(chosen[int(wanted.peak_of[1])], DTYPES[dtype], wanted.peak_of[0])
        return 0
    todo = [case for case in chosen if wanted.images in (None, case.shape["B"])]
    if wanted.check:
        for name in (wanted.dtype,) if wanted.dtype else DTYPES:
            for case in todo:
                check(case, DTYPES[name], wanted.device)
                print(f"right: {case.name} {name}", flush=True)
        return 0
    ceiling = ceilings(wanted.device, DTYPES[dtype])
    facts = {"environment": environment(1), "device": wanted.device, "ceilings": ceiling}
    rows: list[dict] = []
    for done, case in enumerate(todo, start=1):
        check(case, DTYPES[dtype], wanted.device)
        place = [one for one in chosen if one.op == case.op].index(case)
        for row in measure(case, place, dtype, wanted.device, ceiling, wanted.seconds):
            rows.append(row)
            print(text(row), flush=True)
        if wanted.json:  # after every case, so that a run that is stopped keeps what it measured
            wanted.json.parent.mkdir(parents=True, exist_ok=True)
            found = {**facts, "complete": done == len(todo), "columns": COLUMNS, "rows": rows}
            wanted.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
