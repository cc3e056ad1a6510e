# `make demo` and `make test` do everything on a fresh machine: they make .venv, install the pinned requirements, build, and run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD ?= build
OUT ?= runs/demo
DATASET ?= digits
GPU_OUT ?= runs/gpu-check
SEED ?= $(shell date +%s)
JOBS ?= $(shell nproc)
export MAX_JOBS ?= $(JOBS)
ARM64_CXX ?= aarch64-linux-gnu-g++
ARM64_RUN ?= qemu-aarch64-static
# Every kind of native test, the longest first, a core for each.
in_parts = printf '%s\n' mixture tunings row_terms mixture_dims mixture_products mixture_parameters mdn logsumexp groups softmax sample gamma exponential | xargs -P $(JOBS) -n 1 $(1) --only
# A file's tests share what is costly to set up, and run in one process; the longest files first, as tests/conftest.py orders them.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

NATIVE := $(shell find csrc setup.py pyproject.toml -type f)
CPP := $(shell find csrc tests/native -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \))

.PHONY: help env build demo experiments test test-ops test-models test-examples fuzz native sanitize arm64 cuda-gate cuda-static gpu-check gpu-bundle bench bench-results docs wheel wheel-check lint format clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Of the ten thousand files of torch and its like a few are imported, which Python compiles then: compiling all takes longer than installing them.
$(BIN)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@

$(BIN)/.built: $(BIN)/.installed $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

env: $(BIN)/.installed  ## the environment: .venv with the pinned requirements
build: $(BIN)/.built    ## the extension, in place

demo: build  ## train a VAE on real data (DATASET=digits|mnist|frey), print the result, write pictures to runs/demo
	$(BIN)/vae-fast train --dataset $(DATASET) --latent 10 --epochs 300 --out $(OUT) --overwrite

experiments: build  ## every example with --quick, into runs/experiments, and a table of their numbers
	$(BIN)/python examples/all.py --quick --out runs/experiments

test: build  ## every Python test, and every example in the README, docs/ and the docstrings, on every core
	$(PYTEST)

test-ops: build  ## the functions: values, gradients, layouts, compile, errors
	$(PYTEST) tests/ops

test-models: build  ## models, training, data, plots, the command line
	$(PYTEST) tests --ignore tests/ops --ignore tests/fuzz -k "not example and not distributed and not torchrun"

test-examples: build  ## the examples and the tests of several processes
	$(PYTEST) tests --ignore tests/ops --ignore tests/fuzz -k "example or distributed or torchrun"

fuzz: build  ## random calls and damaged files against the contract, until stopped or for SECONDS=...; SEED=... begins elsewhere
	$(BIN)/python -m tests.fuzz --seed $(SEED) $(if $(SECONDS),--seconds $(SECONDS)) --out $(BUILD)/fuzz

native: build  ## the kernels' own tests: the CPU's, as they are in the extension, each instruction set apart, and CUDA's device code on a host shim
	cmake -S . -B $(BUILD)/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DVAE_FAST_OBJECTS=build/extension \
	  -DVAE_FAST_TORCH=$$($(BIN)/python -c 'import torch; print(torch.__path__[0])')
	cmake --build $(BUILD)/native
	$(call in_parts,$(BUILD)/native/native_tests)

sanitize:  ## the same under AddressSanitizer and UndefinedBehaviorSanitizer (a third of the random cases: it is ten times slower)
	cmake -S . -B $(BUILD)/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DVAE_FAST_SANITIZE=ON
	cmake --build $(BUILD)/sanitize
	$(call in_parts,$(BUILD)/sanitize/native_tests --rounds 13)

arm64:  ## the CPU kernels compiled for 64-bit ARM, their tests run in QEMU (a tenth of the random cases: it is slow)
	@command -v $(ARM64_CXX) >/dev/null && command -v $(ARM64_RUN) >/dev/null || { \
	  echo "make arm64: expected $(ARM64_CXX) and $(ARM64_RUN); on Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static" >&2; exit 1; }
	cmake -S . -B $(BUILD)/arm64 -G Ninja -DCMAKE_BUILD_TYPE=Release -DVAE_FAST_SHIM=OFF \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM64_CXX)
	cmake --build $(BUILD)/arm64
	$(call in_parts,$(ARM64_RUN) -L /usr/aarch64-linux-gnu $(BUILD)/arm64/native_tests --rounds 4)

cuda-gate: $(BIN)/.installed  ## compile all CUDA code for sm_80 and sm_90 and refuse register spills (no GPU needed)
	$(BIN)/python tools/cuda_gate.py -j $(JOBS) --out $(BUILD)/cuda

cuda-static: $(BIN)/.installed  ## predict from the sm_90 machine code what the hot kernels reach; fails where one got 3% heavier (benchmarks/static/sm_90.json)
	$(BIN)/python tools/cuda_static.py -j $(JOBS) --out $(BUILD)/cuda

gpu-check:  ## on a machine with a GPU and its own torch, in stages of eight minutes: STAGE=1..5 (all), GPU_OUT=folder of results, COMMIT=, BUNDLE=
	$(PYTHON) tools/gpu_check.py --stage $(or $(STAGE),all) --out $(GPU_OUT) $(if $(COMMIT),--commit $(COMMIT)) $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(EARLIER),--earlier $(EARLIER))

gpu-bundle:  ## without a GPU: one archive for such a machine, with binaries for torch 2.11.0+cu130, Python 3.12 (GPU_PYTHON), capability 9.0
	$(PYTHON) tools/gpu_bundle.py -j $(JOBS) $(if $(GPU_PYTHON),--python $(GPU_PYTHON))

bench: build  ## the performance tables, against PyTorch, torch.compile, torch.distributions and scikit-learn: ten minutes at most
	$(BIN)/vae-fast bench

bench-results: build  ## the same, the sweeps, training to a loss and in two processes, written to benchmarks/results/<machine>/ and from there into the README and docs/: a quiet machine
	$(BIN)/vae-fast bench --suite all --full --threads $(JOBS) --budget 3600 --out 'benchmarks/results/{machine}'
	$(BIN)/python benchmarks/distributed.py --threads $(JOBS) --out 'benchmarks/results/{machine}'
	$(BIN)/python benchmarks/readme.py

docs: $(BIN)/.installed  ## the documentation, in build/site: a broken link or an example that cannot be read fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --site-dir $(BUILD)/site

wheel: $(BIN)/.installed  ## the wheel of this Python and this torch, in dist/
	VAE_FAST_WHEEL=1 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .

wheel-check: wheel  ## its size and content; installed into a fresh environment without a compiler, it runs the README's swap on the kernels
	$(BIN)/python tools/wheel_check.py

lint: $(BIN)/.installed  ## formatters, linters and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(BIN)/.installed  ## format everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:  ## remove what was built, but not the environment
	rm -rf $(BUILD) dist *.egg-info vae_fast/*.so vae_fast/_built_for.py $(BIN)/.built
