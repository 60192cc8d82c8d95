# make demo: train I-JEPA on rendered scenes. make test: style checks and all tests. make lint: style checks only.
# PYTEST_ARGS: the tests of a file run in one of up to four processes, one per CPU.
# make docs: the documentation as a site in site/, to be opened without a server.
# PYTHON is the interpreter of the environment. CONSTRAINTS= (empty) lets pip choose the versions of dependencies.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
DEMO_CONFIG ?= configs/ijepa/demo.yaml
DEMO_ARGS ?=
PYTEST_ARGS ?= --numprocesses=logical --maxprocesses=4 --dist=loadfile

PIP_INSTALL = $(VENV)/bin/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo test lint format docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(VENV)/bin/python tools/train_net.py --config $(DEMO_CONFIG) $(DEMO_ARGS)

test: lint
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(VENV)/.installed-for-tests
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

docs: $(VENV)/.installed-for-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache

# Stamp files: a second call reinstalls only if the dependencies have changed.
$(VENV)/.installed: $(VENV)/.created setup.py pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-for-tests: $(VENV)/.created setup.py pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) -e ".[test]"
	@touch $@ $(VENV)/.installed $(VENV)/.installed-for-docs

$(VENV)/.installed-for-docs: $(VENV)/.created setup.py pyproject.toml $(CONSTRAINTS)
	$(PIP_INSTALL) -e ".[docs]"
	@touch $@ $(VENV)/.installed

$(VENV)/.created:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "$(PYTHON) is older than Python 3.10; name another one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@
