"""What each call wants to have beside PyTorch, Triton, NumPy and pytest: packages, and why."""

from perf.calls.plan import CALLS

# package -> (megabytes of its wheel or archive, what for)
PACKAGES = {
    "pydantic": (2.8, "configurations, with pydantic-core, typing-inspection and annotated-types"),
    "deepspeed": (2.3, "the engine, as a pure wheel, with hjson"),
}


def listing(number: int) -> str:
    """The packages of a call, a line each."""
    needed = CALLS[number].packages
    if not needed:
        return f"call {number} needs nothing beside PyTorch, Triton and pytest"
    return "\n".join(f"{name:14} {PACKAGES[name][0]:6.1f} MB  {PACKAGES[name][1]}" for name in needed)
