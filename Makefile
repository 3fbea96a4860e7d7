# Everything here sets itself up: the first call makes the virtual environment, later calls are quick.
#   make run      the main job, from raw (synthetic) trips to a tested and registered model; ROWS=1000000 make run for twice as many
#   make quick    lint, types and the fast tests, in less than two minutes
#   make test     lint, types, the notebooks' examples, and all tests but the slow ones, with their coverage
#   make test-slow    whole pipelines and months of real data
#   make test-page    the service's page in a real Chromium; needs Debian's chromium
#   make test-cloud   the cloud parts on an emulated AWS with real containers; needs podman, runc, debootstrap and root
#   make test-all     these four
#   make export   the package from the notebooks;   make readme   README.md from nbs/index.ipynb
#   make docs     the documentation site in _docs, its links checked
#   make bench    how long each step takes, beside what others need;   make bench-serving   the service beside others;
#                 make bench-drift   what monitoring finds and misses
#   make lock     constraints.txt afresh from settings.ini
#   make release VERSION=0.2.0   a checked wheel and a tag

PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
EXTRAS := dev,docs,aws,gcp,azure,kubernetes,excel
ROWS   ?= 500000
SEED   ?= 0
QUICK  := tests/house tests/contract tests/features tests/sampling tests/costs
README_DIR ?= .
TEST_CLOUD ?= $(HOME)/.cache/slml-test-cloud
TRIPS  := .slml/trips_$(ROWS)_$(SEED)

# Two OpenMP threads that spin while they wait take both cores from those that work.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: install run quick test test-all lint types types-lower notebooks pytest coverage test-slow test-page test-cloud export readme docs \
        bench bench-serving bench-drift lock release clean

install: $(READY)

$(READY): constraints.txt settings.ini setup.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

run: $(READY)
	@python -m slml.taxi --rows $(ROWS) --seed $(SEED) --out $(TRIPS)
	@slml pipeline run pipelines/taxi.yaml -p 'source=$(TRIPS)/*.txt'

quick: lint types
	python -m pytest -q -n 2 --dist worksteal -m "not slow and not medium" $(QUICK)

test: lint types notebooks pytest coverage

test-all: test test-slow test-page test-cloud

lint: $(READY)
	ruff check .
	ruff format --check .

# mypy, and no package with more errors than tests/house/mypy-baseline.txt allows; types-lower writes fewer down.
types: $(READY)
	python tests/house/check_types.py

types-lower: $(READY)
	python tests/house/check_types.py --lower

# Every example in every notebook; job notebooks (skip_exec) run in pytest, as jobs.
notebooks: $(READY)
	nbdev_test --n_workers 2

pytest: $(READY)
	python -m pytest -q -n 2 --dist worksteal -m "not slow" --cov=slml --cov-report= tests

# The total, and the ten modules of which the tests run least (the notebooks' examples run more of them).
coverage:
	@coverage report --skip-covered --sort=cover | sed -n '1,12p;$$p'

test-slow: $(READY)
	python -m pytest -q -n 2 --dist worksteal -m slow tests

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

# -W: a broken link is an error.
docs: $(READY)
	python docs/pages.py build/docs
	sphinx-build -q -W --keep-going -j 2 -c docs build/docs _docs
	@echo "open _docs/index.html"

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
	.lock/bin/pip install --quiet -c .lock/torch.txt --editable '.[$(EXTRAS)]'
	.lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > constraints.txt
	rm -r .lock

# A tag on a clean tree, for a version that the changelog has and whose wheel works in a fresh environment.
release: $(READY)
	@test -n "$(VERSION)" || { echo "say which: make release VERSION=0.2.0"; exit 2; }
	@test -z "$$(git status --porcelain)" || { echo "commit your changes first"; exit 2; }
	@grep -q "^## $(VERSION) " CHANGELOG.md || { echo "CHANGELOG.md has no section for $(VERSION)"; exit 2; }
	sed -i 's/^version = .*/version = $(VERSION)/' settings.ini
	$(MAKE) export readme
	python -m build --outdir dist
	python -m pytest -q tests/promises/test_wheel.py
	git commit -qam "Release $(VERSION)"
	git tag -a "v$(VERSION)" -m "slml $(VERSION)"
	@echo "push it: git push --follow-tags"

clean:
	rm -rf .slml build dist _docs *.egg-info
