"""No kernel contains a number that float32 cannot hold: up to Triton 3.6 it turns the whole expression into float64."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

KERNELS = Path(__file__).parents[2] / "kernels"
FLOAT32 = torch.finfo(torch.float32)


def literals(source: str) -> Iterator[float]:
    """Every float that is written in a function of Triton."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and any(
            "triton.jit" in ast.unparse(d) for d in function.decorator_list
        ):
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and isinstance(node.value, float):
                    yield node.value


def outside_float32(source: str) -> list[float]:
    return [x for x in literals(source) if x != 0 and not FLOAT32.tiny <= abs(x) <= FLOAT32.max]


@pytest.mark.parametrize("file", sorted(KERNELS.glob("*/*kernel.py")), ids=lambda file: file.parent.name)
def test_numbers_in_kernels_are_normal_in_float32(file):
    assert outside_float32(file.read_text()) == []


def test_a_number_below_the_smallest_normal_one_is_found():
    source = "@triton.jit\ndef f(x):\n    return tl.maximum(x, 1e-38) + 0.0 + 1e39 + 1.5\nlow = 1e-40\n"
    assert sorted(outside_float32(source)) == [1e-38, 1e39]
