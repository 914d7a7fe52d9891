# Everything starts here: each target installs what it needs into .venv first, and is quick the second time.
PYTHON ?= python3
PROMPT ?= a yellow animal that says moo
BIN := .venv/bin
CORE := .venv/.installed-core
STAMP := .venv/.installed

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow compare lint install clean

demo: $(CORE)  ## draw a hard prompt with the embedded model
	$(BIN)/milr generate "$(PROMPT)" --out out/demo --overwrite

# Two test files side by side, each with one thread: quicker on two cores than one after the other with two. Threads that
# wait must not spin, or they take the time of those that work. TESTS=tests/runs tests a part, WORKERS=0 without processes.
WORKERS ?= 2
TESTS ?= tests
QUIETLY := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

test: lint  ## lint, types, tests
	$(QUIETLY) $(BIN)/pytest -q -n $(WORKERS) --dist loadfile $(TESTS)

test-slow: $(STAMP)  ## the tests that take minutes; hypothesis looks for new examples
	$(QUIETLY) $(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "slow and not real_weights" $(TESTS)
	HYPOTHESIS_PROFILE=search $(QUIETLY) $(BIN)/pytest -q -n $(WORKERS) --dist loadfile $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

compare: $(STAMP)  ## every method at equal cost on the lab's test prompts; killed, it goes on where it stopped
	$(BIN)/milr bench scenes --prompt-seed 7 --limit 300 --out out/compare

install: $(STAMP)

# The stamps are younger than the project files that decide what is installed: what drawing needs, and with the tools for
# development on top. The second step completes the first, so a demo before a test costs nothing twice.
$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "milr needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $(CORE)

$(STAMP): $(CORE)
	$(PIP) -e '.[dev]'
	@touch $(STAMP)

clean:  ## remove the environment, caches and outputs
	rm -rf .venv out .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
