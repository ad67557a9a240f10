# Set-up, training, tests and checks; `make help` lists the targets.
#
# PYTHON  the interpreter that makes the virtual environment, 3.11 or newer
# VENV    where that environment is
# TORCH   a version (2.13.0), or any requirement pip reads (torch>=2.11, a wheel's path);
#         where pip looks for it follows pip's own settings, for example PIP_INDEX_URL
# ARGS    more arguments of `engine train`, pytest or a benchmark
# WORKERS processes in which `make test` runs tests side by side
# ENGINE_CUDA        0 leaves out the CUDA kernels, 1 fails where they cannot be built; unset, built where nvcc is
# ENGINE_CUDA_ARCHS  the GPUs that they are built for, as in "80;90"; unset, those of this machine, else 80 and 90
# ENGINE_JPEG        0 decodes JPEG with simplejpeg, 1 fails without libjpeg-turbo's headers; unset, what is there
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
ARGS ?=
WORKERS ?= 2
ENGINE_CUDA ?=
ENGINE_CUDA_ARCHS ?=
ENGINE_JPEG ?=
export ENGINE_CUDA ENGINE_CUDA_ARCHS ENGINE_JPEG

BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
TORCH_REQUIREMENT := $(if $(findstring torch,$(TORCH)),$(TORCH),torch==$(TORCH))
BENCHMARKS := $(filter-out %/__init__.py %/harness.py,$(wildcard benchmarks/*.py))

# A few small shapes of every kernel, as each takes hundreds of times as long under the sanitizer.
SANITIZED := tests/gpu/test_values.py tests/gpu/test_images.py tests/gpu/test_binary.py -k small_shapes

.PHONY: build train test soak sanitize lint bench gpu-test gpu-bench clean distclean help FORCE
.DELETE_ON_ERROR:

build: $(VENV)/.built  ## environment and compiled extension (the default)

train: build  ## train the default configuration: make train ARGS="model=lenet run.epochs=5"
	$(BIN)/engine train $(ARGS)

test: build  ## every test but the long ones: make test ARGS="tests/core -k philox"
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not soak" $(ARGS)

soak: build  ## the long tests alone
	$(BIN)/pytest -m soak $(ARGS)

sanitize: build  ## the kernels under sanitizers (memory, undefined behaviour, races): make sanitize ARGS="500 1"
	$(BIN)/python tests/csrc/sanitize.py $(ARGS)

lint: build  ## style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.bench  ## every benchmark, quickly: make bench ARGS=--json
	set -e; for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(BIN)/python $$benchmark --quick $(ARGS); done

gpu-test:  ## what needs a GPU: builds for the one at hand, tests there, and under compute-sanitizer where installed
	@$(call need_gpu)
	$(MAKE) --no-print-directory build ENGINE_CUDA=1
	ENGINE_TEST_GPU=1 $(BIN)/pytest -m gpu $(ARGS)
	@PATH="$$PATH:$${CUDA_HOME:-/usr/local/cuda}/bin"; command -v compute-sanitizer > /dev/null || { \
	    echo "compute-sanitizer is not installed (it comes with the CUDA toolkit): memcheck and racecheck did not run"; \
	    exit 0; }; \
	for tool in memcheck racecheck; do echo "== compute-sanitizer --tool $$tool"; \
	    ENGINE_TEST_GPU=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(BIN)/python -m pytest -q --timeout 0 -m gpu $(SANITIZED) || exit 1; done

gpu-bench:  ## convolutions and a step's host time on the GPU at hand, to docs/results: make gpu-bench ARGS="--only fft"
	@$(call need_gpu)
	$(MAKE) --no-print-directory build ENGINE_CUDA=1
	$(BIN)/python benchmarks/conv.py --device cuda --write docs/results/conv-cuda-tables.md $(ARGS)
	$(BIN)/python benchmarks/overhead.py --device cuda --write docs/results/overhead-cuda-tables.md \
	    $(filter --quick --json,$(ARGS))
	$(BIN)/python benchmarks/formats/binary_on_gpu.py --write docs/results/binary-cuda-tables.md \
	    $(filter --quick --json,$(ARGS))

clean:  ## remove what was built; the environment and runs/ stay
	rm -rf build dist *.egg-info engine/*.so $(VENV)/.built .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
	    printf '%-10s %s\n' "$$name" "$$text"; done
	@sed -n '3,12s/^# \{0,1\}//p' $(MAKEFILE_LIST)

# Said before anything is built: to compile for no GPU takes minutes.
need_gpu = nvidia-smi -L 2>&1 | grep -q '^GPU' || { \
    echo "make $@ needs an NVIDIA GPU with its driver, and nvidia-smi finds none here"; exit 2; }

# The environment. Stamps lie in it, so a second call finds it ready at once and removing it starts afresh.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) -V 2>&1); name one: make PYTHON=python3.11"; \
	    exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch first: what is installed after it must fit the torch that was asked for, not bring another.
$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt $(VENV)/.torch | $(BIN)/python
	$(INSTALL) '$(TORCH_REQUIREMENT)'
	$(INSTALL) -r requirements.txt -r requirements-dev.txt
	@touch $@

# ninja keeps the objects under build/: after a change in csrc/ only what it touches is compiled again.
$(VENV)/.built: $(VENV)/.installed $(VENV)/.plugins $(VENV)/.cuda setup.py pyproject.toml $(shell find csrc -type f)
	$(INSTALL) --no-build-isolation --no-deps --editable .
	@for told in JPEG engine._cuda; do test ! -e build/$$told.txt || cat build/$$told.txt; done  # what pip does not show
	@touch $@

$(VENV)/.bench: $(VENV)/.built requirements-bench.txt
	$(INSTALL) -r requirements-bench.txt
	@touch $@

# Facts that are no files, written down when they change: the torch and the CUDA kernels asked for, and the folders of
# plugins/, which an installation records as entry points.
$(VENV)/.torch: FACT = $(TORCH_REQUIREMENT)
$(VENV)/.plugins: FACT = $(wildcard plugins/*/__init__.py)
$(VENV)/.cuda: FACT = $(ENGINE_CUDA) $(ENGINE_CUDA_ARCHS) $(ENGINE_JPEG)
$(VENV)/.torch $(VENV)/.plugins $(VENV)/.cuda: FORCE | $(BIN)/python
	@printf '%s\n' '$(FACT)' | cmp -s - $@ || printf '%s\n' '$(FACT)' > $@
