"""The page on the kernels: its example runs, and the limits that it names are those of the code."""

import re

import pytest
import torch

from kernels.alignment.checks import MAX_POSITIONS
from kernels.common.path import Backend
from kernels.gem_pyramid.op import WHOLE_POWERS
from kernels.ring_aggregate.op import MAX_PARTS
from tacaf.child_processes import ROOT

PAGE = (ROOT / "docs" / "kernels.md").read_text()


def test_the_example_runs_and_gives_the_shapes_that_the_page_says():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    torch.manual_seed(0)
    exec(code, names)
    shapes = {name: tuple(value.shape) for name, value in names.items() if isinstance(value, torch.Tensor)}
    assert shapes["reconstruction_NLC"] == (2, 162, 64)
    assert shapes["positive_distance_NL"] == shapes["negative_distance_NL"] == shapes["comask_NL"] == (2, 162)
    assert shapes["pooled_BNC"] == (4, 10, 64)
    assert shapes["parts_BRD"] == (4, 6, 64)
    assert shapes["normed_BHWC"] == (4, 18, 9, 64)
    assert not names["comask_NL"].requires_grad
    assert names["reconstruction_NLC"].requires_grad


@pytest.mark.parametrize(
    ("operation", "limit"),
    [
        ("align", f"{MAX_POSITIONS:,} positions"),
        ("gem_pyramid", f"from {min(WHOLE_POWERS)} to {max(WHOLE_POWERS)}"),
        ("ring_aggregate", f"{MAX_PARTS} parts"),
    ],
)
def test_limits_are_those_of_the_code(operation, limit):
    (row,) = [line for line in PAGE.partition("## Limits")[2].splitlines() if line.startswith(f"| `{operation}`")]
    assert limit in row


def test_every_backend_is_explained():
    table = PAGE.partition("## Backends")[2].partition("## ")[0]
    assert set(re.findall(r'^\| `"(\w+)"`', table, re.MULTILINE)) == set(Backend.__args__)
