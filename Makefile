# `make demo` and `make test` each do everything from a fresh clone: environment, pinned install, run.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
# launched ranks find `deepspeed` and `ninja` here too
export PATH := $(BIN):$(PATH)
# nothing is ever fetched while running: weights and data come from files that the user names
export HF_HUB_OFFLINE := 1

.PHONY: help venv test test-slow test-all mutation lint format docs demo demo-all demo-vision clean

help:
	@echo "make demo      set up, then show the whole method on built-in data"
	@echo "make demo-all  the same, then the other tasks on built-in data too"
	@echo "make demo-vision  image classifiers: a small Swin on built-in data"
	@echo "make test      set up, then style, import rules, types and the quick tests"
	@echo "make test-all  the same and the slow tests"
	@echo "make mutation  which share of small changes to the code the tests notice, by random samples"
	@echo "make lint      style, import rules and types;  make format  mends style"
	@echo "make docs      build the documentation's site in site/; a broken link or an undocumented name is an error"
	@echo "make clean     remove the environment and caches (not data or runs)"

venv: $(STAMP)
	@:

# the stamp comes last, so that an interrupted install is taken up again; a broken environment is made anew
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    python=; found=; \
	    for candidate in $${PYTHON:-python3.13 python3.12 python3.11 python3}; do \
	        command -v "$$candidate" >/dev/null || continue; \
	        found="$$found $$candidate ($$($$candidate -c 'import platform; print(platform.python_version())' 2>/dev/null || echo 'does not run'))"; \
	        if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "error: Python 3.11 or newer is needed, found:$${found:- none}; install one or name it: make venv PYTHON=/path/to/python3.11" >&2; exit 2; \
	    fi; \
	    if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
	        echo "error: $$python cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; \
	    fi; \
	    echo "making $(VENV) with $$python ($$("$$python" -c 'import platform; print(platform.python_version())'))"; \
	    rm -rf $(VENV); \
	    "$$python" -m venv $(VENV); \
	fi
	@echo "installing the pinned packages into $(VENV); the first time this can take minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[train,deepspeed,lora,dev,viz,detection,corpus,ray,docs]"
	@touch $(STAMP)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# tests run on the CPU whatever the machine has: WORKERS processes of one thread each (up to 2 GB each)
WORKERS ?= 2
test test-slow: export DS_ACCELERATOR := cpu
test test-slow: export CUDA_VISIBLE_DEVICES :=
test test-slow: export OMP_NUM_THREADS ?= 1
PARALLEL := -n $(WORKERS) --dist loadfile

test: lint
	@$(BIN)/python -m pytest -q -m "not slow" $(PARALLEL)

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow --timeout 1200 $(PARALLEL) || { code=$$?; [ $$code -eq 5 ] || exit $$code; } # 5: none there

test-all: test
	@$(MAKE) --no-print-directory test-slow

mutation: $(STAMP)
	@$(BIN)/python tests/mutation.py metrics lowrank evaluation data

# mkdocs-material prints an advertisement of another program otherwise
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP)
	@PYTHONPATH="$(CURDIR)" $(BIN)/mkdocs build --strict
	@echo "the site is in site/index.html"

demo: $(STAMP)
	@$(BIN)/python tasks/demo.py

demo-all: $(STAMP)
	@$(BIN)/python tasks/demo.py --all-tasks

demo-vision: $(STAMP)
	@$(BIN)/python tasks/demo_vision.py

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
