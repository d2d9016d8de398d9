# `make demo` and `make test` each do everything from a fresh clone: environment, pinned install, run.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
# what is installed: all but the extras for addresses and for single data sets
EXTRAS := train,deepspeed,lora,dev,viz,detection,corpus,ray,docs
CONSTRAINTS := constraints.txt
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
# launched ranks find `deepspeed` and `ninja` here too
export PATH := $(BIN):$(PATH)
# nothing is ever fetched while running: weights and data come from files that the user names
export HF_HUB_OFFLINE := 1

.PHONY: help venv test test-quick test-slow test-all venv-lowest test-lowest test-lowest-core test-latest browser test-browser mutation lint format docs demo demo-all demo-vision clean

help:
	@echo "make demo      set up, then show the whole method on built-in data"
	@echo "make demo-all  the same, then the other tasks on built-in data too"
	@echo "make demo-vision  image classifiers: a small DeiT and Swin on built-in data"
	@echo "make test      set up, then style, import rules, types and the quick tests"
	@echo "make test-all  the same and the slow tests"
	@echo "make test-lowest  the quick tests with the oldest packages that pyproject.toml allows;  make test-latest  with the newest"
	@echo "make test-browser  the report pages in headless Chromium;  make browser  installs that (Debian, Ubuntu; as root)"
	@echo "make mutation  which share of small changes to the code the tests notice, by random samples"
	@echo "make lint      style, import rules and types;  make format  mends style"
	@echo "make docs      build the documentation's site in site/; a broken link or an undocumented name is an error"
	@echo "make clean     remove the environment and caches (not data or runs)"

venv: $(STAMP)
	@:

# the stamp comes last, so that an interrupted install is taken up again; a broken environment is made anew
$(STAMP): pyproject.toml $(CONSTRAINTS)
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
	@echo "installing $(if $(CONSTRAINTS),the packages of $(CONSTRAINTS),the newest packages) into $(VENV); the first time this can take minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS),--upgrade) -e ".[$(EXTRAS)]"
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
test-quick test-slow: export DS_ACCELERATOR := cpu
test-quick test-slow: export CUDA_VISIBLE_DEVICES :=
test-quick test-slow: export OMP_NUM_THREADS ?= 1
PARALLEL := -n $(WORKERS) --dist loadfile

test: lint
	@$(MAKE) --no-print-directory test-quick

test-quick: $(STAMP)
	@$(BIN)/python -m pytest -q -m "not slow and not browser" $(PARALLEL) $(TESTS)

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -q -m slow --timeout 1200 $(PARALLEL) || { code=$$?; [ $$code -eq 5 ] || exit $$code; } # 5: none there

test-all: test
	@$(MAKE) --no-print-directory test-slow

# environments of their own; every extra is in the oldest one, which has no wheels for Python 3.13
LOWEST = VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt PYTHON="$${PYTHON:-python3.11 python3.12}" \
	EXTRAS=$(EXTRAS),export,s3,gs,hf,http,segmentation,imagenet

venv-lowest:
	@$(MAKE) --no-print-directory $(LOWEST) venv

test-lowest:
	@$(MAKE) --no-print-directory $(LOWEST) test-quick

# the part of it that continuous integration has time for
test-lowest-core:
	@$(MAKE) --no-print-directory $(LOWEST) TESTS="tests/lowrank tests/recovery tests/models tests/checkpoints" test-quick

test-latest:
	@$(MAKE) --no-print-directory VENV=.venv-latest CONSTRAINTS= test-quick

# a driver comes with the Python packages, the browser from the system
BROWSER = command -v $${PELA_BROWSER:-chromium-headless-shell chromium chromium-browser google-chrome google-chrome-stable} >/dev/null

browser:
	@$(BROWSER) || { \
	    command -v apt-get >/dev/null && test "$$(id -u)" = 0 || { \
	        echo "error: install Chromium (Debian, Ubuntu: apt install chromium-headless-shell fonts-dejavu-core)" >&2; exit 2; }; \
	    export DEBIAN_FRONTEND=noninteractive; apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-dejavu-core >/dev/null; }

test-browser: $(STAMP)
	@$(BROWSER) || { echo "error: no Chromium: run make browser, or name one in PELA_BROWSER" >&2; exit 2; }
	@$(BIN)/python -m pytest -q -m browser

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
	rm -rf $(VENV) .venv-lowest .venv-latest build site *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
