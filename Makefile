# Every target works from a bare python3 (>= 3.11): the environment is made on first use, with the versions in constraints.txt.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
ONE    := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-slow mutation benchmarks trajectories-experts trajectories-ipc1 trajectories-ipc10 trajectories-architectures trajectories-report trajectories-nas lint docs clean

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

# Trajectory matching on a processor, in DISTILL_DATA's CIFAR-10. Each run goes on after an interruption; the experts come first. These
# networks are small: two runs side by side on a thread each (make -j2) are several times faster than one on two threads.
FIELD := $(BIN)/python -m realdata
TRAJECTORIES := results/trajectories
PACE := 1
runs = $(foreach seed,0 1 2,$(foreach method,$(1),$(TRAJECTORIES)/$(method)-ipc$(2)-$(seed)))
part = $(patsubst ipc%,%,$(word $(1),$(subst -, ,$(2))))
OTHERS := $(foreach network,mlp convnet4-narrow alexnet-narrow vgg11-narrow resnet18-narrow,$(foreach method,mtt ftd,$(method)-ipc10-0/$(network).json))

trajectories-experts: trajectories-experts-mtt trajectories-experts-ftd  ## six plain and six flat experts with their quality

trajectories-experts-%: $(VENV)/.all
	$(FIELD) experts --preset $*-cpu --store $(TRAJECTORIES)/experts --measured 6 --threads 1 $(if $(filter ftd,$*),--pace $(PACE))

trajectories-ipc1: $(addsuffix /evaluation.json,$(call runs,mtt ftd,1))  ## MTT and FTD, one image a class, three seeds, beside random images

trajectories-ipc10: $(addsuffix /evaluation.json,$(call runs,mtt ftd,10))  ## ten images a class, batches of 30

$(TRAJECTORIES)/%/evaluation.json: | $(VENV)/.all
	$(FIELD) distill --preset $(call part,1,$*)-cpu --ipc $(call part,2,$*) --seed $(call part,3,$*) --experts $(TRAJECTORIES)/experts --out $(@D) \
		--threads 1 --compiled $(if $(findstring ipc10,$*),--trajectory.batch 30 --outer-steps 200)
	$(FIELD) evaluate $(@D) --baselines random --seeds 5 --lengths 200 --threads 1

trajectories-architectures: $(addprefix $(TRAJECTORIES)/,$(OTHERS))  ## the sets of ten images a class, seed 0, on other networks of width 16

$(addprefix $(TRAJECTORIES)/,$(OTHERS)): | $(VENV)/.all
	$(FIELD) evaluate $(@D) --networks $(basename $(@F)) --baselines random --seeds 2 --lengths 50 200 --json $@ --threads 1

trajectories-report: trajectories-ipc1 trajectories-ipc10  ## all of the runs above in one report, and the errors along the experts by epoch
	$(FIELD) trajectories $(call runs,mtt ftd,1) $(call runs,mtt ftd,10) --experts $(TRAJECTORIES)/experts --out $(TRAJECTORIES)/report

trajectories-nas: $(TRAJECTORIES)/mtt-ipc10-0/evaluation.json  ## 24 architectures ranked by a distilled set of ten images a class
	$(FIELD) nas $(TRAJECTORIES)/mtt-ipc10-0 --widths 8 16 --depths 1 2 3 --activations relu --poolings max avg --norms none instance \
		--epochs 3 --steps 200 --batch 64 --out $(TRAJECTORIES)/nas --threads 1

lint: $(VENV)/.all          ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.docs          ## the documentation site, in results/docs; a warning is an error
	$(ONE) $(BIN)/python -m sphinx -q -W --keep-going -d results/doctrees docs results/docs

clean:                      ## removes the environment and the results
	rm -rf $(VENV) results docs/api
