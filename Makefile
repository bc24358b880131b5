# make demo: everything from nothing to a scored model.  make test: everything from nothing to green tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# The identities of the demo's synthetic set: four fifths train, one fifth is scored.
DEMO_IDENTITIES ?= 160
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-all test-processors gpu-host-test gpu-host-rehearsal check format clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready $(DEMO)/shards/index.json
	deepspeed --num_accelerators 1 launch/train.py --config launch/configs/demo.yaml \
	    --set run=$(DEMO)/run --set data.shards=$(DEMO)/shards $(if $(wildcard $(DEMO)/run/config.yaml),--resume)

test: $(VENV)/ready
	python -m pytest -m "not long"

test-all: $(VENV)/ready gpu-host-test
	python -m pytest

# As on other processors and on a busy machine: six times `make test`, and a table.
test-processors: $(VENV)/ready
	python -m tests.processors

check: $(VENV)/ready
	ruff format --check .
	ruff check .
	mypy

format: $(VENV)/ready
	ruff format .
	ruff check --fix .

$(DEMO)/raw: | $(VENV)/ready
	python -m shards synth --out $@ --layout sysu_mm01 --identities $(DEMO_IDENTITIES) --seed 0

$(DEMO)/shards/index.json: | $(DEMO)/raw
	python -m shards pack sysu_mm01 --root $(DEMO)/raw --out $(DEMO)/shards
	python -m shards verify $(DEMO)/shards

# Set-up, once: virtual environment, the pinned packages, this project, and DeepSpeed's communication op for CPU.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else 'expected Python 3.11 to 3.13, got %d.%d; set PYTHON=' % sys.version_info[:2])"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m launch.engine
	touch $@

# The GPU suite's rehearsal with the versions of a GPU machine. Several GB, because PyTorch 2.11 for Python 3.12 comes with
# CUDA only. GPU_HOST_PYTHON= names a Python 3.12 that is not found by itself.
GPU_HOST_VENV ?= .venv-gpu-host
GPU_HOST_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python) python3.12)
GPU_HOST_PACKAGES := torch triton numpy deepspeed pydantic pytest pytest-timeout pyyaml safetensors pillow psutil tqdm \
    fsspec scipy jinja2 matplotlib scikit-learn threadpoolctl
GPU_HOST = PYTHONPATH=$(CURDIR) TORCH_EXTENSIONS_DIR=$(abspath $(GPU_HOST_VENV))/torch_extensions $(GPU_HOST_VENV)/bin/python

gpu-host-test:
	@if $(GPU_HOST_PYTHON) -c "" 2>/dev/null; then $(MAKE) gpu-host-rehearsal; \
	else echo "gpu-host-test: not run, because there is no Python 3.12 here; GPU_HOST_PYTHON= names one"; fi

gpu-host-rehearsal: $(GPU_HOST_VENV)/ready
	$(GPU_HOST) -m pytest tests/perf/test_gpu_suite.py

$(GPU_HOST_VENV)/ready: constraints-gpu-host.txt
	test -x $(GPU_HOST_VENV)/bin/python || $(GPU_HOST_PYTHON) -m venv $(GPU_HOST_VENV)
	$(GPU_HOST_VENV)/bin/python -m pip install --quiet --upgrade pip setuptools wheel
	$(GPU_HOST_VENV)/bin/python -m pip install --quiet --constraint constraints-gpu-host.txt $(GPU_HOST_PACKAGES)
	$(GPU_HOST) -m launch.engine
	touch $@

clean:
	rm -rf $(VENV) $(GPU_HOST_VENV) .cache $(DEMO)
