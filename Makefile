# make demo | test | test-all | lint | docs | venv      Needs make and Python >= 3.11; everything else goes into $(VENV).
# Overridable: PYTHON (the interpreter that makes the environment), VENV (where it goes).
# Where packages come from is left to the settings of uv and pip.

VENV ?= .venv
PYTHON ?=

# The interpreters to try. One that is a version manager's stub counts as absent: each has to run and be new enough.
CANDIDATES = $(if $(PYTHON),$(PYTHON),python3.12 python3.11 python3.13 python3 python)
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
BIN = $(VENV)/bin
PY = $(BIN)/python

# A worker a core; those that are done take over what others have left. The ten slowest tests are told at the end.
PYTEST = $(PY) -m pytest -n logical --dist worksteal --durations 10

# The site has an environment of its own, of a few small packages: it reads the source, and imports neither it nor torch.
DOCS_VENV = .venv-docs

.PHONY: demo test test-all lint docs docs-packages venv
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	$(BIN)/spequant demo

test: $(VENV)/.installed-dev
	$(PYTEST) -p no:randomly -m "not slow"

test-all: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(PY)
	$(BIN)/lint-imports

docs: $(DOCS_VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

venv: $(VENV)/.installed-dev

# An environment that runs is kept, whoever made it; `python -m venv` fails where the system packages leave ensurepip
# out (Debian without python3-venv): then uv makes it, if there is one.
$(PY):
	@set -eu; \
	for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(NEW_ENOUGH)' 2>/dev/null; then \
	    echo "making $(VENV) with $$candidate"; \
	    "$$candidate" -m venv "$(VENV)" && exit 0; \
	    uv venv --clear --python "$$candidate" "$(VENV)" && exit 0; \
	    rm -rf "$(VENV)"; \
	    echo "error: $$candidate cannot make an environment; install its venv module (Debian: apt install python3-venv) or uv" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "error: no Python >= 3.11 among: $(CANDIDATES). Install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

# One resolution for torch and torchvision: they come in matching pairs.
# uv is the environment's own, else the one on the path, else fetched with pip. If uv cannot reach its index (a mirror
# that only pip's settings name), pip does the same installation.
define install
	@set -eu; \
	"$(PY)" -c '$(NEW_ENOUGH)' || { echo "error: $(PY) does not run or is older than Python 3.11; remove $(VENV)" >&2; exit 1; }; \
	pip() { "$(PY)" -m pip --version >/dev/null 2>&1 || "$(PY)" -m ensurepip >/dev/null; "$(PY)" -m pip "$$@"; }; \
	uv=""; \
	for candidate in "$(BIN)/uv" uv; do \
	  if "$$candidate" --version >/dev/null 2>&1; then uv="$$candidate"; break; fi; \
	done; \
	if [ -z "$$uv" ] && pip install --quiet uv; then uv="$(BIN)/uv"; fi; \
	if [ -z "$$uv" ] || ! "$$uv" pip install --compile-bytecode --python "$(PY)" $(1) -c constraints.txt; then \
	  echo "uv did not install; trying pip"; \
	  pip install $(1) -c constraints.txt; \
	fi
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(PY)
	$(call install,-e ".[all]")
	@touch $@

COMMA := ,
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(PY)
	$(call install,-e ".[all$(COMMA)dev]")
	@touch $(VENV)/.installed $@

# The packages of the extra `docs`, without spequant and what that needs.
EXTRA = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
docs-packages: | $(PY)
	$(call install,$$("$(PY)" -c '$(EXTRA)'))

$(DOCS_VENV)/.installed-docs: pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory VENV=$(DOCS_VENV) docs-packages
	@touch $@
