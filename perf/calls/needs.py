"""The packages that each call needs besides PyTorch, Triton, NumPy, pytest and their dependencies.

Versions are those of requirements/lock.txt, and those that these packages require.
"""

from dataclasses import dataclass

from perf.calls.plan import CALLS


@dataclass(frozen=True)
class Need:
    """What a package is for, the packages to download for it, and its size in MB when it was gathered."""

    why: str
    requirements: tuple[str, ...]
    mb: float


NEEDS = {
    "pydantic": Need(
        "configurations",
        ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
        2.9,
    ),
    "deepspeed": Need("the engine; built here as a pure wheel", ("deepspeed", "hjson"), 2.3),
    "webdataset": Need("the plain reader in bench_data", ("webdataset", "braceexpand"), 0.1),
    "dali": Need(
        "decoding on the GPU; without the code of other chips, in two parts",
        (
            "nvidia-dali-cuda130",
            "nvidia-nvimgcodec-cu13",
            "nvidia-nvjpeg",
            "optree",
            "makefun",
            "libcst",
            "nvtx",
            "astunparse",
            "gast",
            "six",
        ),
        65.0,
    ),
}


def listing(number: int) -> str:
    """The packages of a call with their sizes, one per line."""
    needed = CALLS[number].packages
    if not needed:
        return f"call {number} needs nothing besides PyTorch, Triton and pytest"
    lines = [f"{name:12} {NEEDS[name].mb:6.1f} MB  {NEEDS[name].why}" for name in needed]
    return "\n".join(lines)
