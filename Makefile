# Each target makes its own .venv with plain pip; nothing else has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps

.PHONY: demo test test-graphs test-others test-fast test-gpu test-gpu-compile test-browser test-clients test-ray check bench clean

demo: $(STAMPS)/run
	$(BIN)/pipelines generate --prompt 'def read_lines(path):' --max-new-tokens 120 --stats

# All but GPUs, and graphs for them. What compiles graphs, and the rest, at the same time: each is busy on one core most
# of the time, and two processes that run graphs would be in each other's way. GPU_GRAPHS=1: those for GPUs too, once the
# rest is done, in the time that the graphs for the CPU leave.
test: $(STAMPS)/test
	$(MAKE) --jobs 2 test-graphs test-others

test-graphs: $(STAMPS)/test
	$(BIN)/python -m pytest -m 'compiles and not gpu_compile and not gpu'

test-others: $(STAMPS)/test
	$(BIN)/python -m pytest -m 'not compiles and not gpu'
	$(if $(GPU_GRAPHS),nice -n 19 $(MAKE) test-gpu-compile)

# Neither compiles a graph nor takes seconds: a minute on two cores.
test-fast: $(STAMPS)/test
	$(BIN)/python -m pytest -m 'not compiles and not slow'

# Models on a GPU beside transformers on the same one; skipped without a GPU, GRAPH_PIPELINES_TEST_DEVICES=cpu runs them on
# the CPU.
test-gpu: $(STAMPS)/test
	$(BIN)/python -m pytest tests/gpu -m gpu -v --durations=20 -W default

# Graphs for GPUs, compiled on a machine that needs none: minutes each.
test-gpu-compile: $(STAMPS)/test
	$(BIN)/python -m pytest -m gpu_compile

# The chat page in a headless Chromium, which must be installed.
test-browser: $(STAMPS)/browser
	$(BIN)/python tests/support/browser.py
	$(BIN)/python -m pytest tests/pipelines/serve/test_page_in_browser.py

# Real clients against a server on the demo model; installs them from PyPI and npm, which takes minutes the first time.
test-clients: $(STAMPS)/run
	$(BIN)/python scripts/try_clients.py

# Replicas behind one endpoint and batches of files, with Ray from PyPI; then a replica is killed under load.
test-ray: $(STAMPS)/ray
	$(BIN)/python -m pytest -m ray
	$(BIN)/python examples/ray_serve_check.py

check: $(STAMPS)/check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMPS)/test
	$(BIN)/python benchmarks/generate.py

clean:
	rm -rf $(VENV) build *.egg-info

$(STAMPS)/run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@mkdir -p $(STAMPS) && touch $@

# torch is asked for by its exact version before anything else can pull another build of it.
$(STAMPS)/test: $(STAMPS)/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	$(BIN)/python -c 'import kv_cache'  # its first import compiles a module of MAX, which two processes can't do at once
	@touch $@

$(STAMPS)/browser: $(STAMPS)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,browser]'
	@touch $@

$(STAMPS)/ray: $(STAMPS)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,ray]'
	@touch $@

$(STAMPS)/check: $(STAMPS)/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,check]'
	@touch $@
