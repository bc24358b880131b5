"""Times a training step of the whole model on synthetic tensors: what each module, kernel and option costs or saves.

    python perf/bench_train.py [--device cpu] [--small] [--groups 4] [--rounds 5] [--variants "whole*"] [--json FILE]

Forward with losses, backward and optimiser step of TACAFNet (ResNet-50 at 288x144, bf16 autocast on a GPU; --small: the
demo's model), without data loading; ranks and ZeRO are bench_ranks.py's. Needs PyTorch, Triton and pydantic; neither
DeepSpeed nor DALI. On a CPU all variants are timed in turns in one process, so that a noisy machine is as noisy for
each; on a GPU one after another, and the file is written after every variant. A step that is replayed from a CUDA graph
has one time, not one for each phase.
"""

from tacaf.start import start

if __name__ == "__main__":
    start("perf.bench_train")

import argparse
import fnmatch
import itertools
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from perf.bench_kernels import MIB
from tacaf.child_processes import child_environment
from tacaf.command import Parser, entry, to_path
from tacaf.files import write_json
from tacaf.interfaces import Pairs
from tacaf.losses.total import LossConfig, TacafLoss
from tacaf.model.pairs import draw_pairs
from tacaf.model.tacafnet import ModelConfig, TacafNet
from tacaf.provenance import environment
from tacaf.train.capture import captured, reason_of
from tacaf.vocabulary import Branch, InputError

PER_IDENTITY, PAIR_GROUP, CLASSES = 4, 2, 395
PHASES = ("forward", "backward", "optimizer")
MEASURED_RATE = 790e12  # bf16 matrix products a second, one H200, on random data
SMALL = {
    "backbone": {"width": 16, "blocks": [1, 1, 1, 1]},
    "ipcam": {"node_width": 64, "attention_width": 32, "pair_width": 32},
}


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
    graph: bool = False  # the whole step replayed from a CUDA graph


VARIANTS = (
    Variant("baseline, definitions", False, False, kernels=False),
    Variant("baseline, kernels", False, False),
    Variant("baseline, kernels, channels-last, fused", False, False, channels_last=True, fused=True),
    Variant("whole, definitions", kernels=False),
    Variant("whole, kernels"),
    Variant("+ IPCAM, kernels", cmaam=False),
    Variant("+ CMAAM, kernels", ipcam=False),
    Variant("whole, kernels, channels-last", channels_last=True),
    Variant("whole, kernels, fused optimizer", fused=True),
    Variant("whole, kernels, channels-last, fused", channels_last=True, fused=True),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark", channels_last=True, fused=True, cudnn_benchmark=True
    ),
    Variant("whole, kernels, channels-last, fused, recompute", channels_last=True, fused=True, recompute=True),
    Variant(
        "whole, kernels, channels-last, fused, cudnn.benchmark, graph",
        channels_last=True,
        fused=True,
        cudnn_benchmark=True,
        graph=True,
    ),
    Variant("whole, all with compile", channels_last=True, fused=True, compile=True, cudnn_benchmark=True),
)
PLAIN = "whole, definitions"
WARM_UP = 3  # steps on the stream of a capture before it
SAME_LOSS = 1e-2  # of a replayed step and of the same step as it is, relative


def batch(device: str, groups: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """Noise images of three branches, visible first, with the labels of a planned batch."""
    identities = groups * PAIR_GROUP
    branch = torch.tensor([int(branch) for branch in Branch]).repeat_interleave(identities * PER_IDENTITY)
    label = torch.arange(identities).repeat_interleave(PER_IDENTITY).repeat(len(Branch))
    images = torch.randn(len(label), 3, height, width, generator=torch.Generator().manual_seed(0))
    found = {"label": label, "branch": branch, "group": label // PAIR_GROUP, "position": torch.arange(len(label))}
    return {name: tensor.to(device) for name, tensor in (found | {"images": images}).items()}


def pairs_of(data: dict[str, torch.Tensor], layers: tuple[int, ...]) -> dict[str, Pairs]:
    """The pairs that the layers want, which a training's data path draws ahead as well."""
    columns = [data[name].cpu() for name in ("label", "branch", "group", "position")]
    drawn = {f"pairs{layer}": draw_pairs(*columns, 0, 0, 0, layer, "both") for layer in layers}
    return {name: Pairs(*(rows.to(data["label"].device) for rows in pairs)) for name, pairs in drawn.items()}


class Step:
    """One variant's model and optimiser; calling it does a step and keeps the milliseconds of each phase."""

    phases: tuple[str, ...] = PHASES

    def __init__(self, variant: Variant, data: dict[str, torch.Tensor], device: str, small: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        sections: dict[str, Any] = {name: dict(values) for name, values in SMALL.items()} if small else {}
        sections.setdefault("ipcam", {})["enabled"] = variant.ipcam
        sections["cmaam"] = {"enabled": variant.cmaam, "recompute": variant.recompute}
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
            found = self.model(data["images"], data["label"], self.visible, **self.pairs)
            return self.criterion(found, data["label"])[0]

    @contextmanager
    def settings(self) -> Iterator[None]:
        """What a step of this variant wants set while it is launched."""
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, self.variant.cudnn_benchmark
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def run(self, mark: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Do a step; its loss on the device. `mark` is called after each phase."""
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
        """Do a step and wait for each of its phases; its loss."""
        marks = [self._now()]
        loss = self.run(lambda: marks.append(self._now()))
        if keep:
            spans = [1000 * (later - sooner) for sooner, later in itertools.pairwise(marks)]
            for phase, span in zip(self.phases, spans, strict=True):
                self.times[phase].append(span)
            self.times["step"].append(sum(spans))
        return loss.item()

    def peak_mib(self) -> float:
        """The most a step holds above what lay there before it: allocated on a GPU; resident on a CPU, where only a
        process's first step shows it, because memory once freed is kept for the next.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self(keep=False)
            return (torch.cuda.max_memory_allocated() - before) / MIB
        before = _status_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        self(keep=False)
        return _status_mib("VmHWM") - before

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class GraphedStep(Step):
    """A step that is replayed from a CUDA graph once `capture` was called. Its phases cannot be told apart."""

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
        """The most that the capture holds, which a replay allocates nothing above."""
        return self.capture()

    def capture(self) -> float:
        """Capture a step; the MiB it held at most. RuntimeError if the replay's loss is not that of the step as it is.

        The optimiser's rate is fixed in the graph.
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


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def cpu_peak_mib(wanted: argparse.Namespace, variant: Variant) -> float:
    """A variant's peak on a CPU, from a process of its own."""
    words = ["--device", "cpu", "--groups", wanted.groups, "--peak-of", variant.name, *["--small"] * wanted.small]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(),
    )
    return float(done.stdout)


class Timed:
    """A variant that is being timed, and what is known of it."""

    def __init__(self, variant: Variant, data: dict[str, torch.Tensor], wanted: argparse.Namespace) -> None:
        self.bf16, self.wanted = wanted.device == "cuda" and not wanted.fp32, wanted
        self.step = (GraphedStep if variant.graph else Step)(variant, data, wanted.device, wanted.small, self.bf16)
        self.first_loss = self.step(keep=False)  # warm-up: builds, tunes, compiles
        self.flops = self._flops(variant) if self.bf16 else None
        self.peak_mib = self._peak_mib(variant)

    def _peak_mib(self, variant: Variant) -> float | None:
        if self.wanted.device == "cuda":
            return self.step.peak_mib()
        # a compiler's own memory would drown the step's
        return None if variant.compile else cpu_peak_mib(self.wanted, variant)

    def _flops(self, variant: Variant) -> int | None:
        """Of the whole model's products; the counter does not see into compiled code."""
        if variant.compile or not (variant.cmaam and variant.ipcam):
            return None
        with FlopCounterMode(display=False) as counter:
            self.step(keep=False)
        return counter.get_total_flops()

    def row(self) -> dict[str, Any]:
        """The figures so far. images_per_s and matrix_rate_share are of the median step."""
        images, _, height, width = self.step.data["images"].shape
        medians = {
            f"{phase}_ms": statistics.median(times) if times else None for phase, times in self.step.times.items()
        }
        seconds = medians["step_ms"] / 1000
        return {
            **self.step.variant._asdict(),
            "images": images,
            "height": height,
            "width": width,
            "small": self.wanted.small,
            "bf16": self.bf16,
            "first_loss": self.first_loss,
            "peak_mib": self.peak_mib,
            **medians,
            "steps_ms": self.step.times["step"],
            "images_per_s": images / seconds,
            "flops": self.flops,
            "matrix_rate_share": self.flops / seconds / MEASURED_RATE if self.flops else None,
            "error": None,
        }


def chosen(patterns: list[str], device: str) -> list[Variant]:
    """The variants whose names match one of the patterns, in their order; off a GPU no option of cuDNN."""
    return [
        variant
        for variant in VARIANTS
        if any(fnmatch.fnmatchcase(variant.name, pattern) for pattern in patterns)
        and (device == "cuda" or variant.compile or not variant.cudnn_benchmark)
    ]


Write = Callable[[list[dict]], None]


def measure(
    wanted: argparse.Namespace, say: Callable[[str], None] = print, write: Write = lambda _: None
) -> list[dict]:
    """A row for each variant; `write` is given the rows so far whenever there are more or better ones."""
    data = batch(wanted.device, wanted.groups, *((96, 48) if wanted.small else (288, 144)))
    variants = [variant for variant in chosen(wanted.variants, wanted.device) if wanted.compile or not variant.compile]
    rows: list[dict] = []
    # in turns on a CPU; on a GPU one after another, which frees each one's memory and leaves every finished row
    for together in [[variant] for variant in variants] if wanted.device == "cuda" else [variants]:
        timed, failed = [], []
        for variant in together:
            try:
                timed.append(Timed(variant, data, wanted))
                say(f"{variant.name}: first loss {timed[-1].first_loss:.4f}")
            except Exception as error:  # a variant that fails must not lose the others' figures
                failed.append({**variant._asdict(), "error": reason_of(error)})
                say(f"{variant.name}: failed: {failed[-1]['error']}")
        for _ in range(wanted.rounds):
            for one in timed:
                one.step()
            write(compared([*rows, *(one.row() for one in timed), *failed]))
        rows += [*(one.row() for one in timed), *failed]
        if len(together) == 1 and timed:
            say(f"{together[0].name}: {rows[-1]['step_ms']:.1f} ms, {rows[-1]['images_per_s']:.0f} images/s")
    rows = compared(rows)
    write(rows)
    return rows


def compared(rows: list[dict]) -> list[dict]:
    """The rows with `ratio_to_plain`: how many times as fast as the whole model by its definitions."""
    plain_ms = next((row.get("step_ms") for row in rows if row["name"] == PLAIN), None)
    return [{**row, "ratio_to_plain": plain_ms and row.get("step_ms") and plain_ms / row["step_ms"]} for row in rows]


def added(rows: list[dict]) -> dict[str, float]:
    """What CMAAM and IPCAM together add to the baseline's step and to its peak memory, kernels against definitions.

    Empty unless all four were measured.
    """
    by_name = {row["name"]: row for row in rows if row.get("step_ms")}
    if not all(f"{part}, {way}" in by_name for part in ("whole", "baseline") for way in ("definitions", "kernels")):
        return {}
    found = {}
    for what in ("step_ms", "peak_mib"):
        more = {
            way: by_name[f"whole, {way}"][what] - by_name[f"baseline, {way}"][what]
            for way in ("definitions", "kernels")
        }
        found |= {f"added_{what}_{way}": value for way, value in more.items()}
        found[f"added_{what}_ratio"] = more["kernels"] / more["definitions"] if more["definitions"] else None
    return found


def _number(value: float | None, form: str = ".0f") -> str:
    return "-" if value is None else format(value, form)


def table(rows: list[dict]) -> str:
    lines = [f"{'variant':60} {'forward':>9} {'backward':>9} {'optimizer':>9} {'step ms':>9} {'peak MiB':>9}  to plain"]
    for row in rows:
        if row["error"]:
            lines.append(f"{row['name']:60} failed: {row['error']}")
            continue
        times = " ".join(
            f"{_number(row[name], '.1f'):>9}" for name in (*(f"{phase}_ms" for phase in PHASES), "step_ms")
        )
        lines.append(f"{row['name']:60} {times} {_number(row['peak_mib']):>9}  {_number(row['ratio_to_plain'], '.2f')}")
    return "\n".join(lines)


@entry()
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the demo's model and image size")
    parser.add_argument("--fp32", action="store_true", help="no autocast on a GPU (a CPU has none here)")
    parser.add_argument("--groups", type=int, default=4, help="pair groups in the batch, of 24 images each")
    parser.add_argument("--rounds", type=int, default=5, help="how often every variant is timed")
    parser.add_argument(
        "--variants", nargs="+", default=["*"], metavar="NAME", help='names or patterns such as "whole*"; default all'
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--json", type=to_path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    wanted = parser.parse_args(argv)
    if wanted.peak_of:
        variant = next(variant for variant in VARIANTS if variant.name == wanted.peak_of)
        data = batch("cpu", wanted.groups, *((96, 48) if wanted.small else (288, 144)))
        print(Step(variant, data, "cpu", wanted.small, False).peak_mib())
        return 0
    if not chosen(wanted.variants, wanted.device):
        names = "; ".join(variant.name for variant in VARIANTS)
        raise InputError(f"expected names of variants, got {' '.join(wanted.variants)}; there are: {names}")
    facts = {"environment": environment(1), "rounds": wanted.rounds}

    def write(rows: list[dict]) -> None:
        if wanted.json:
            write_json(wanted.json, {**facts, **added(rows), "rows": rows})

    rows = measure(wanted, write=write)
    print(table(rows))
    if more := added(rows):
        print(
            f"CMAAM + IPCAM add {more['added_step_ms_kernels']:.0f} ms and {more['added_peak_mib_kernels']:.0f} MiB"
            f" with kernels, {more['added_step_ms_definitions']:.0f} ms and"
            f" {more['added_peak_mib_definitions']:.0f} MiB by their definitions"
        )
    return 1 if any(row["error"] for row in rows) else 0
