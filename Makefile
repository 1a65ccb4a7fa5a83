# make demo       images from text with the shipped model, in samples/demo
# make test       the tests, about 12 minutes on two cores the first time
# make test-slow  the tests that take minutes each
# make lint       ruff: lint and format
# make clean      delete .venv and what the other targets wrote
#
# Needs python3 (3.11 or newer, with venv) and make. Everything else goes into .venv; a second call installs nothing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := samples/demo
PYTEST := $(BIN)/python -m pytest
# The tests of a file run in one process, since they share fixtures. A process may need 4 GB.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
# PARITY=0 does not install PyTorch and transformers; the tests that compare with them are then skipped.
PARITY ?= 1

# Two of these were never trained on in this style: 蓝心 (blue heart) and "no one under eighteen".
PROMPTS := "red heart, 3d style" "police officer, twemoji style" "student, outline style" "flag: France, twemoji style" \
           "微笑的脸，经典风格" "红心，线条风格" "蓝心，扁平风格" "no one under eighteen, classic style"

.PHONY: demo test test-slow lint format unicode-data clean

demo: $(VENV)/.core
	$(BIN)/python scripts/generate.py $(PROMPTS) --num_images 1 --seed 0 --out $(DEMO) --overwrite
	@echo "The grid of images: $(CURDIR)/$(DEMO)/grid.png"

test: $(VENV)/.dev unicode-data
	$(PYTEST) -m "not slow" $(PARALLEL) $(ARGS)

test-slow: $(VENV)/.dev unicode-data
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Unicode's list of emoji and their Chinese names, from Debian's packages where that is possible.
UNICODE_PACKAGES := unicode-data unicode-cldr-core

unicode-data:
	@if test -e /usr/share/unicode/emoji/emoji-test.txt \
	     -a -e /usr/share/unicode/cldr/common/annotations/zh.xml; then :; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends $(UNICODE_PACKAGES) >/dev/null \
	    || echo "Could not install $(UNICODE_PACKAGES): tests of the icons skip."; \
	else \
	  echo "Without $(UNICODE_PACKAGES) (Debian's names), tests of the icons skip."; \
	fi

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "imagen_jax needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=26'

$(VENV)/.core: pyproject.toml requirements.txt | $(BIN)/python
	$(PIP) install --quiet --no-compile --editable .
	@touch $@

# PyTorch first and in an exact version, so that nothing else chooses another; torch-fidelity and
# clean-fid last and without their dependencies, since they ask for torchvision.
$(VENV)/.dev: $(VENV)/.core
ifneq ($(PARITY),0)
	$(PIP) install --quiet torch==2.13.0
	$(PIP) install --quiet --editable '.[dev,parity]'
	$(PIP) install --quiet --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35
else
	$(PIP) install --quiet --editable '.[dev]'
endif
	@touch $@ $(VENV)/.lint

$(VENV)/.lint: | $(BIN)/python
	$(PIP) install --quiet 'ruff==0.17.5'
	@touch $@

clean:
	rm -rf $(VENV) samples .pytest_cache .ruff_cache
