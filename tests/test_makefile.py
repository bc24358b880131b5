"""What `make` would run, without running it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tacaf.checkout import ROOT
from tests.processes import LIMIT_S


def demo_of(folder: Path, installed: bool) -> str:
    """The commands of `make demo` in an environment with or without the package of ImageNet weights."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable if installed else "false"} "$@"\n')
    python.chmod(0o755)
    command = ["make", "--dry-run", "demo", f"VENV={folder}", f"DEMO={folder / 'demo'}"]
    alone = {"PATH": os.environ["PATH"]}  # without what a make that runs the tests passes on
    return subprocess.run(
        command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=LIMIT_S, check=True
    ).stdout


@pytest.mark.parametrize(("installed", "config"), [(True, "demo_pretrained.yaml"), (False, "demo.yaml")])
def test_the_demo_starts_from_imagenet_weights_where_their_package_is_installed(tmp_path, installed, config):
    assert f"--config launch/configs/{config} " in demo_of(tmp_path, installed)


def test_a_demo_that_was_begun_is_continued_with_its_own_settings(tmp_path):
    (tmp_path / "demo" / "run").mkdir(parents=True)
    (tmp_path / "demo" / "run" / "config.yaml").touch()
    assert f"--config {tmp_path}/demo/run/config.yaml " in (found := demo_of(tmp_path, installed=True))
    assert found.rstrip().endswith("--resume")
