# Everything here sets itself up: the first call makes the virtual environment, later calls are quick.
#   make run      the main job, from raw (synthetic) trips to a tested and registered model; ROWS=1000000 make run for twice as many
#   make test     lint, the notebooks' examples, pytest (which also holds notebooks, package and README in step)
#   make test-page    the service's page in a real Chromium; needs Debian's chromium
#   make test-cloud   the cloud parts on an emulated AWS with real containers; needs podman, runc, debootstrap and root
#   make export   the package from the notebooks;   make readme   README.md from nbs/index.ipynb
#   make bench    how long each step takes, beside what others need;   make bench-serving   the service beside others;
#                 make bench-drift   what monitoring finds and misses
#   make lock     constraints.txt afresh from settings.ini

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
ROWS   ?= 500000
SEED   ?= 0
README_DIR ?= .
TEST_CLOUD ?= $(HOME)/.cache/slml-test-cloud
TRIPS  := .slml/trips_$(ROWS)_$(SEED)

# Two OpenMP threads that spin while they wait take both cores from those that work.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: install run test lint notebooks pytest test-page test-cloud export readme bench bench-serving bench-drift lock clean

install: $(READY)

$(READY): constraints.txt settings.ini setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev,aws,gcp,azure,kubernetes]'
	@touch $@

run: $(READY)
	@python -m slml.taxi --rows $(ROWS) --seed $(SEED) --out $(TRIPS)
	@slml pipeline run pipelines/taxi.yaml -p 'source=$(TRIPS)/*.txt'

test: lint notebooks pytest

lint: $(READY)
	ruff check .
	ruff format --check .

# Every example in every notebook; job notebooks (skip_exec) run in pytest, as jobs.
notebooks: $(READY)
	nbdev_test --n_workers 2 --timing

pytest: $(READY)
	python -m pytest -q -n 2 --dist worksteal tests

test-page: $(READY)
	python -m pytest -q tests/page

# The cloud, emulated on this machine with containers that really run; sets itself up in $(TEST_CLOUD), which may be
# removed at any time. Tells what to install where podman, runc or debootstrap are absent.
test-cloud: $(READY)
	SLML_TEST_CLOUD=$(TEST_CLOUD) PYTHONPATH=tests/cloud python -m pytest -p emulated -q --durations=25 tests/cloud

export: $(READY)
	nbdev_export
	nbdev_clean

readme: $(READY)
	TQDM_DISABLE=1 jupyter nbconvert --log-level ERROR --to markdown --execute nbs/index.ipynb \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags=remove_input \
	  --output-dir $(README_DIR) --output README

bench: $(READY)
	python bench/steps.py --rows $(ROWS)

bench-serving: $(READY)
	python bench/serving.py
	python bench/predict.py --rows $(ROWS)

bench-drift: $(READY)
	python bench/drift.py

# torch is pinned first: an unpinned one brings gigabytes of CUDA.
lock:
	$(PYTHON) -m venv .lock && echo 'torch==2.13.0' > .lock/torch.txt
	.lock/bin/pip install --quiet -c .lock/torch.txt --editable '.[dev,aws,gcp,azure,kubernetes]'
	.lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > constraints.txt
	rm -r .lock

clean:
	rm -rf .slml build dist *.egg-info
