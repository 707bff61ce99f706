# Every target works from a bare python3 (>= 3.11): the environment is made on first use, with the versions in constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
ONE    := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-slow mutation benchmarks lint docs clean

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cluster]'
	touch $@

$(VENV)/.all: $(VENV)/.core
	$(PIP) torch==2.13.0
	$(PIP) -e '.[cluster,images,dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.all
	$(PIP) -e '.[cluster,images,dev,docs]'
	touch $@

demo: $(VENV)/.core         ## the scaling-law experiment (about three minutes on two cores)
	$(BIN)/python -m sims scaling --preset demo --workers 0 --out results/demo

test: $(VENV)/.all          ## everything that needs no GPU (ten minutes or less on two cores)
	$(ONE) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests --ignore tests/benchmarks

test-slow: $(VENV)/.all     ## longer statistics
	$(ONE) $(BIN)/python -m pytest -n 2 --dist worksteal -m slow tests --ignore tests/benchmarks

mutation: $(VENV)/.core     ## closed forms altered one place at a time must be caught by their lemmas (fifteen minutes or less on two cores)
	$(ONE) $(BIN)/python -m proofs_check.mutation --count 200 --processes 2 --out results/mutation

benchmarks: $(VENV)/.all    ## ratios measured in one run, printed as a table and stored as JSON
	$(BIN)/python -m pytest tests/benchmarks --benchmark-json=results/benchmarks.json

lint: $(VENV)/.all          ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.docs          ## the documentation site, in results/docs; a warning is an error
	$(ONE) $(BIN)/python -m sphinx -q -W --keep-going -d results/doctrees docs results/docs

clean:                      ## removes the environment and the results
	rm -rf $(VENV) results docs/api
