"""Runs triton_cases.py in a process of its own, in Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.gem_pyramid import gem_pyramid

ROOT = Path(__file__).parents[2]


def test_the_kernels_on_small_odd_shapes():
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels/triton_cases.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout[-500:])


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused_without_the_interpreter():
    with pytest.raises(ValueError, match=r'backend: .*"triton", got CPU'):
        gem_pyramid(torch.rand(1, 2, 2, 8), (1,), 3.0, 1e-6, backend="triton")
