# Two commands, each doing all of its own set-up in .venv; both need a C compiler and Python >= 3.11.
#   make demo    quantize the embedded model by four methods and print the table
#   make test    build with the double-precision twin, lint, type-check, run all tests
.DELETE_ON_ERROR:
.PHONY: demo test lint clean

VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py omniquant/_version.py $(wildcard csrc/*/*.c csrc/*/*.h)
# The first that is new enough; `make PYTHON=/path/to/python3 ...` decides otherwise.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

demo: $(VENV)/.demo
	$(BIN)/omniquant demo

# Most tests run on one thread: a process a core, up to eight, halves the time on two.
test: $(VENV)/.test lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# The embedded model's training alone is written in torch; without its types that cannot be checked.
TRAINING := omniquant/embedded/(fake_quant|optimization|torch_llama|train)\.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
	    echo "mypy"; $(BIN)/mypy; \
	else \
	    echo "mypy, without the training script: it needs torch"; $(BIN)/mypy --exclude '$(TRAINING)'; \
	fi

$(VENV)/.venv:
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || \
	    { echo "error: no C compiler found: install gcc or clang" >&2; exit 1; }
	@for python in $(PYTHON); do \
	    if "$$python" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
	        echo "creating $(VENV) with $$python"; "$$python" -m venv $(VENV) && touch $@; exit; \
	    fi; \
	done; \
	echo "error: no Python >= 3.11 with venv among: $(PYTHON)" >&2; \
	echo "       install one (Debian and Ubuntu: python3 python3-venv python3-dev)," >&2; \
	echo "       or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1

$(VENV)/.demo: $(VENV)/.venv $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[cli,plots]"
	@touch $@

$(VENV)/.test: $(VENV)/.venv $(SOURCES)
	OMNIQUANT_DOUBLE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build omniquant/*.so *.egg-info
