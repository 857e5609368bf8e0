# `make figures` and `make test` work from nothing: they make .venv and install what they need, once.
#   PYTHON=python3.12        the interpreter for a new .venv (3.10 to 3.13)
#   CONSTRAINTS=my-pins.txt  other pins; CONSTRAINTS= for none
#   TESTS=tests/kernel       a part of the tests, for make test
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --quiet

.PHONY: figures test lint notebooks install clean force
.DELETE_ON_ERROR:

figures: install
	$(BIN)/python -m paper_figures --preset quick --simulate

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

lint: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/basedpyright

# Writes the texts of the notebooks into them and runs them again; without time stamps, so that differences can be read.
notebooks: install
	$(BIN)/python -m jupytext --quiet --to ipynb --update notebooks/*.py
	$(BIN)/python -m nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

install: $(VENV)/installed

clean:
	rm -rf $(VENV) $(VENV).wanted paper_figures/out site docs/reference docs/notebooks .pytest_cache .ruff_cache .hypothesis
	find analysis kernel paper_figures tests -name __pycache__ -type d -exec rm -rf {} +

.PHONY: docs
docs: install
	@$(BIN)/python -c "import sphinx" 2>/dev/null || { echo "error: the documentation needs Python 3.11 or later, e.g. make PYTHON=python3.12 docs" >&2; exit 1; }
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --write-all --quiet docs site
	@echo "wrote site/index.html"

# What the environment has to match: the interpreter's version, the pins and the dependencies. Compared by content, so
# that a second run installs nothing and needs no network.
$(VENV)/wanted: force
	@"$(PYTHON)" -c 'import sys' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) does not run; give a Python 3.10 to 3.13, e.g. make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "error: Python 3.10 to 3.13 is needed, PYTHON=$(PYTHON) is %d.%d" % v)'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -z "$(CONSTRAINTS)" || test -r "$(CONSTRAINTS)" || { echo "error: CONSTRAINTS=$(CONSTRAINTS) cannot be read; give a pip constraints file, or CONSTRAINTS= for none" >&2; exit 1; }
	@mkdir -p $(VENV)
	@{ "$(PYTHON)" -c 'import sys; print(sys.version)'; cat pyproject.toml $(if $(CONSTRAINTS),"$(CONSTRAINTS)"); } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# constraints.txt lists all that is needed, so that pip need not resolve it; the second call of pip finds that there and
# adds the package itself and what torch's CUDA build asks for. Python compiles what it imports, a third of all there is.
$(VENV)/installed: $(VENV)/wanted
	@case "$(PYTHON)" in $(BIN)/*) ;; *) \
		echo "Making $(VENV) with $(PYTHON)"; \
		mv $(VENV)/wanted $(VENV).wanted && "$(PYTHON)" -m venv --clear $(VENV) && mv $(VENV).wanted $(VENV)/wanted ;; \
	esac
	@echo "Installing into $(VENV); the first time this downloads the packages that pyproject.toml names"
	@$(if $(filter constraints.txt,$(CONSTRAINTS)),$(PIP) --no-deps -r constraints.txt)
	@$(PIP) $(if $(CONSTRAINTS),-c "$(CONSTRAINTS)") -e '.[dev]'
	@touch $@
