# Everything a developer or a first visitor does is one short command; each sets up what it needs in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where bytecode is not kept, as in many containers, every run compiles all tests and every process the package.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-fast test-stories test-web test-cluster test-jax test-jax-all test-light lint wheel bench chaos audit docs keys format clean

demo: $(VENV)/run.stamp  ## fetch the published MARCO once and score rendered plates with it, under three minutes
	$(BIN)/marcod demo --models $(VENV)/models

test: $(VENV)/test.stamp  ## run the test suite, with the published MARCO, on SQLite and PostgreSQL, two files at a time
	$(BIN)/pytest -m "not story and not web and not cluster and not processes" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/test.stamp  ## run in under a minute what needs neither PostgreSQL nor TensorFlow nor a whole installation
	$(BIN)/pytest --fast -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-stories: $(VENV)/test.stamp  ## run the whole stories: labs under faults, real plates, trainings that are killed
	$(BIN)/pytest -m story --numprocesses 2 --dist loadfile --no-loadscope-reorder

JAX := KERAS_BACKEND=jax JAX_COMPILATION_CACHE_DIR=$(VENV)/jax-cache

test-jax: $(VENV)/jax.stamp  ## train with JAX, which is installed beside the rest, also by two processes
	$(JAX) $(BIN)/pytest -m "not story" tests/fitting tests/model/test_backends.py tests/model/test_network.py \
		tests/acceptance/test_processes_story.py -k "not too_little_memory and not without_memory"

test-jax-all: $(VENV)/jax.stamp  ## run all that depends on the Keras backend with JAX
	$(JAX) $(BIN)/pytest tests/model tests/scoring tests/fitting tests/training tests/evaluate \
		tests/acceptance/test_plates.py tests/acceptance/test_processes_story.py tests/cli/test_heatmap_command.py \
		-k "not miniature and not processes_draw"

# Away from the checkout: the light wheel, in an environment of its own without TensorFlow.
test-light: wheel  ## run what concerns scoring where marcod-light is installed, without TensorFlow, on both databases
	test -x $(VENV)/light/bin/python || $(PYTHON) -m venv $(VENV)/light
	$(VENV)/light/bin/pip install --quiet "$$(ls dist/marcod_light-*.whl)[test]"
	$(VENV)/light/bin/pip install --quiet --no-deps --force-reinstall dist/marcod_light-*.whl
	! $(VENV)/light/bin/python -c "import tensorflow" 2>/dev/null
	$(VENV)/light/bin/pytest --light -m "not story and not web and not cluster and not processes" --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		tests/scoring tests/model tests/cli tests/acceptance tests/health tests/service tests/drift tests/review

test-web: $(VENV)/web.stamp  ## run people with a real browser before the page; needs Debian's chromium, or MARCOD_CHROMIUM
	@test -x "$${MARCOD_CHROMIUM:-/usr/bin/chromium}" || { echo "there is no $${MARCOD_CHROMIUM:-/usr/bin/chromium}:" \
		"apt-get install chromium, or name a Chromium or Chrome by MARCOD_CHROMIUM" >&2; exit 1; }
	$(BIN)/pytest -m web tests/web/browser

test-cluster: $(VENV)/jax.stamp  ## run workers and a training that a real Slurm starts; needs Debian's slurm-wlm and munge
	@PATH="$$PATH:/usr/sbin" && for name in munged slurmctld slurmd sbatch; do command -v $$name >/dev/null || { \
		echo "there is no $$name: apt-get install slurm-wlm munge" >&2; exit 1; }; done
	$(BIN)/pytest -m cluster tests/cluster

lint: $(VENV)/lint.stamp  ## check style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/wheel.stamp  ## build dist/marcod-VERSION-py3-none-any.whl, and marcod_light-... for hosts that only score
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python wheels/light.py dist

bench: $(VENV)/test.stamp  ## measure; never part of the tests
	$(BIN)/python -m benchmarks

chaos: $(VENV)/test.stamp  ## kill, starve and mislead a whole lab for under ten minutes, then count everything
	PYTHONPATH=tests:tests/support $(BIN)/python -m chaos

audit: $(VENV)/run.stamp $(VENV)/audit/bin/pip-audit  ## ask for known holes of every installed library; needs the internet
	$(BIN)/pip freeze --exclude-editable | $(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r /dev/stdin

docs: $(VENV)/lint.stamp  ## write docs/reference.md and the views of docs/lims.md from the program
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/views.py

keys: $(VENV)/test.stamp  ## write the keys of all JSON that programs read again; a key that goes away breaks somebody
	PYTHONPATH=tests/support $(BIN)/python tests/support/json_keys.py

format: $(VENV)/lint.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/audit/bin/pip-audit: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit

$(VENV)/wheel.stamp: | $(BIN)/python
	$(BIN)/pip install --quiet hatchling tomli-w
	touch $@

$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	@echo "installing marcod and its libraries into $(VENV), which takes minutes the first time" >&2
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/web.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,web-test]'
	touch $@

$(VENV)/jax.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,jax]'
	touch $@

$(VENV)/lint.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@
