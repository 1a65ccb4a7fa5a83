# make demo       images from text with the shipped model, in samples/demo
# make test       the tests, about 12 minutes on two cores the first time
# make test-slow  the tests that take minutes each
# make docs       the documentation site, in build/docs
# make wheel      the package with its models and configs, in dist
# make space      a folder for a hosted page with the app, in build/space
# make web        what the page in web/ runs, put there; needs npm
# make lint       ruff: lint and format
# make clean      delete .venv and what the other targets wrote
#
# Needs python3 (3.11 or newer, with venv) and make. Everything else goes into .venv; a second call installs nothing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# setuptools warns of editable installs; pip shows that even when it is quiet.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check
DEMO := samples/demo
# The demo's; MODEL=icons is its teacher, which takes four times as long.
MODEL ?= icons-fast
PYTEST := $(BIN)/python -m pytest
# The tests of a file run in one process, since they share fixtures. A process may need 4 GB.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
# PARITY=0 does not install PyTorch and transformers; the tests that compare with them are then skipped.
PARITY ?= 1

# Two of these were never trained on in this style: 蓝心 (blue heart) and "no one under eighteen".
PROMPTS := "red heart, 3d style" "police officer, twemoji style" "student, outline style" "flag: France, twemoji style" \
           "微笑的脸，经典风格" "红心，线条风格" "蓝心，扁平风格" "no one under eighteen, classic style"

# The page in web/: which parts of which model it runs, on which version of npm's onnxruntime-web.
WEB_MODEL ?= icons-fast
WEB_PARTS ?= text_encoder,base64_steps,sr256_steps
ORT_WEB := 1.30.0
ORT_FILES := ort.wasm.min.mjs ort.jspi.min.mjs \
             ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.jspi.mjs
ORT_BINARIES := ort-wasm-simd-threaded.wasm ort-wasm-simd-threaded.jspi.wasm

.PHONY: demo docs wheel space web web-runtime test test-slow lint format unicode-data clean

demo: $(VENV)/.core
	$(BIN)/python scripts/generate.py $(PROMPTS) --model $(MODEL) --num_images 1 --seed 0 --out $(DEMO) --overwrite
	@echo "The grid of images: $(CURDIR)/$(DEMO)/grid.png"

docs: $(VENV)/.docs
	@mkdir -p build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict > build/docs.log 2>&1 || { cat build/docs.log; exit 1; }
	@echo "Next: $(PYTHON) -m http.server -d build/docs, then open http://localhost:8000"

wheel: $(VENV)/.core
	rm -rf build/lib
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

space: wheel
	rm -rf build/space && mkdir -p build && cp -r space build/space && cp dist/*.whl build/space
	@echo "Upload what is in build/space."

# Files are stored with gzip, so that any server sends them small.
web: web/ort/$(ORT_WEB) $(VENV)/.export
	rm -rf web/model
	$(BIN)/python scripts/export.py --model $(WEB_MODEL) --parts $(WEB_PARTS) \
	  --format onnx --dtype int8 --out web/model
	gzip -9 -n web/model/*
	@echo "Next: $(PYTHON) -m http.server -d web, then open http://localhost:8000"

web/ort/$(ORT_WEB):
	@command -v npm >/dev/null || { echo "make web needs npm (of Node.js) to get ONNX Runtime." >&2; exit 1; }
	rm -rf web/ort build/web && mkdir -p build/web
	cd build/web && npm pack --silent onnxruntime-web@$(ORT_WEB) && tar -xzf *.tgz
	cd build/web/package/dist && gzip -9 -n $(ORT_BINARIES)
	mkdir web/ort && mv $(addprefix build/web/package/dist/,$(ORT_FILES) $(ORT_BINARIES:=.gz)) web/ort
	rm -rf build/web
	@touch $@

# For the tests of the page, where they can run.
web-runtime:
	@if command -v npm >/dev/null && test -x /usr/bin/chromium; then \
	  $(MAKE) --no-print-directory web/ort/$(ORT_WEB) || echo "Tests of the page skip."; \
	else \
	  echo "Without npm and Debian's chromium, tests of the page skip."; \
	fi

test: $(VENV)/.dev unicode-data web-runtime
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
	@touch $@ $(VENV)/.lint $(VENV)/.docs

$(VENV)/.export: $(VENV)/.core
	$(PIP) install --quiet --editable '.[export]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) install --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.lint: | $(BIN)/python
	$(PIP) install --quiet 'ruff==0.17.5'
	@touch $@

clean:
	rm -rf $(VENV) build dist samples web/model web/ort .pytest_cache .ruff_cache
