"""Everything a GPU machine can tell, in one command: python perf/gpu_suite.py --out DIR [--minutes 8]

Correctness first (every op at the real shapes in every dtype against float64, then the kernel tests), then the kernel
benchmark in bf16, then a training step of the whole model. Each part runs in a process of its own inside what is left
of the time, and leaves a file in DIR even when it fails; `summary.json` and `summary.md` say what ran. PyTorch and
Triton are enough for the kernels; what else a part needs and does not find (pytest, pydantic) makes it "not measured",
with the reason.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# the kernel tests that run on a GPU, without the project's plugins and fixtures: those need more than PyTorch
TESTS = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull, "--rootdir", ".",
         "tests/kernels/triton_cases.py")  # fmt: skip
# name, what must be importable, share of the time it may take, command
PARTS = (
    ("right", (), 0.2, ("perf/bench_kernels.py", "--check", "--images", "64")),
    ("tests", ("pytest",), 0.3, TESTS),
    ("kernels_64", (), 0.3, ("perf/bench_kernels.py", "--images", "64", "--json", "{out}/kernels_64.json")),
    ("kernels_512", (), 0.3, ("perf/bench_kernels.py", "--images", "512", "--json", "{out}/kernels_512.json")),
    ("train", ("pydantic",), 0.2, ("perf/bench_train.py", "--rounds", "10", "--json", "{out}/train.json")),
    ("kernels_96", (), 0.2, ("perf/bench_kernels.py", "--images", "96", "--json", "{out}/kernels_96.json")),
)


def run_part(name: str, command: tuple[str, ...], out: Path, limit_s: float) -> dict:
    """Run one part; its output goes to DIR/<name>.txt as it comes."""
    began = time.monotonic()
    with (out / f"{name}.txt").open("w") as log:
        try:
            done = subprocess.run(
                [sys.executable, *(word.format(out=out) for word in command)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            )
            state = "passed" if done.returncode == 0 else f"failed with {done.returncode}"
        except subprocess.TimeoutExpired:
            state = f"stopped after {limit_s:.0f} s"
    return {"part": name, "state": state, "seconds": round(time.monotonic() - began, 1)}


def machine() -> dict:
    """The GPU and the versions that decide what the figures mean."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "gpu": properties.name, "memory_mib": properties.total_memory // 2**20,
        "multiprocessors": properties.multi_processor_count, "capability": list(torch.cuda.get_device_capability(0)),
        "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__,
        "python": sys.version.split()[0], "commit": commit.stdout.strip() or None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip


def write_summary(out: Path, facts: dict, parts: list[dict]) -> None:
    """After every part, so that a killed suite still says what it did."""
    (out / "summary.json").write_text(json.dumps({"machine": facts, "parts": parts}, indent=1) + "\n")
    lines = [f"# GPU suite on {facts['gpu']}", ""]
    lines += [f"{key}: {value}  " for key, value in facts.items()]
    lines += ["", "| part | state | seconds |", "|---|---|---|"]
    lines += [f"| {part['part']} | {part['state']} | {part['seconds']} |" for part in parts]
    for path in sorted(out.glob("*.txt")):
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-60:])
        lines += ["", f"## {path.stem}", "```", tail, "```"]
    (out / "summary.md").write_text("\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--minutes", type=float, default=8, help="time for everything (default 8)")
    wanted = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: expected a GPU, found none; on a CPU use perf/bench_kernels.py --device cpu", file=sys.stderr)
        return 2
    out = wanted.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    facts, parts, end = machine(), [], time.monotonic() + 60 * wanted.minutes
    for name, needs, share, command in PARTS:
        missing = [package for package in needs if find_spec(package) is None]
        left_s = end - time.monotonic()
        if missing:
            part = {"part": name, "state": f"not measured: {', '.join(missing)} is not installed", "seconds": 0}
        elif left_s < 10:
            part = {"part": name, "state": "not measured: no time left", "seconds": 0}
        else:
            part = run_part(name, command, out, min(left_s, 60 * wanted.minutes * share))
        parts.append(part)
        write_summary(out, facts, parts)
        print(f"{part['part']:12} {part['state']} ({part['seconds']} s)", flush=True)
    return 1 if any(part["state"].startswith(("failed", "stopped")) for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
