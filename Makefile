# Commands for developers. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMMA := ,

# Tests start hundreds of Python processes. Without cached bytecode, each process compiles the code again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage floors check format docs simulate wrong-settings explore mutants cost-search spec image chaos mixed-versions gameday bigquery-kills bigquery-contract screenshots live-sdks bench bench-uploads bench-peers bench-streams bench-slow bench-scale hashes clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

# $(call install,EXTRAS) shows its progress on a terminal and is quiet elsewhere. uv is faster but does not read
# pip.conf, so pip is used if uv is missing or fails.
define install
@echo "installing dependencies into $(VENV): minutes if none are cached"
@if test -t 1; then quiet=; else quiet=--quiet; fi; \
  if command -v uv > /dev/null && uv pip install $$quiet --python $(BIN)/python -c constraints.txt -e '.[$(1)]'; \
  then exit; fi; \
  $(BIN)/python -m pip install $$quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "replays-ingest needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(call install,local$(COMMA)dev)
	@touch $@

BENCH_STAMP := $(VENV)/.installed-bench
$(BENCH_STAMP): $(STAMP)
	$(call install,local$(COMMA)dev$(COMMA)bench)
	@mkdir -p .bench && touch $@

STREAMS := .bench/streams
$(STREAMS)/.installed: benchmarks/streams-requirements.txt
	$(PYTHON) -m venv $(STREAMS)
	$(STREAMS)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/streams-requirements.txt
	@touch $@

setup: $(STAMP) ## create a virtual environment in .venv with pinned dependencies

demo: $(STAMP) ## run the whole system once on the embedded stack, and compare every sink with what was produced
	$(BIN)/replays-ingest demo

# Tests run in more processes than there are cores, because tests that use servers mostly wait.
PYTEST := -m pytest -n 3 --dist loadfile --no-loadscope-reorder
# These are the quick tests of packages that have a coverage floor. To include tests that use servers, which take
# longer, set: COVERED="tests/unit tests/eager tests/integration"
COVERED := $(addprefix tests/unit/,benchmarks cli core local observe operate reader tasks testing trial web) tests/eager \
  tests/unit/test_settings_fit.py tests/integration/tasks/sinks/test_storage_write.py \
  $(addprefix tests/unit/tools/,gameday test_audit.py test_documents.py test_habits.py test_history.py)

# With MEASURED=1 (for CI), each test runs once, and tests in COVERED run under coverage, for `make floors`
# afterwards.
ifdef MEASURED
test: $(STAMP)
	rm -rf .coverage && mkdir .coverage
	failed=0; \
	$(BIN)/python -m coverage run $(PYTEST) $(COVERED) || failed=1; \
	$(BIN)/python $(PYTEST) $(COVERED:%=--ignore=%) || failed=1; \
	exit $$failed
else
test: $(STAMP) ## run all tests
	$(BIN)/python $(PYTEST)
endif

coverage: $(STAMP) ## compare the coverage of each package, including branches and child processes, with its floor
	rm -rf .coverage && mkdir .coverage
	$(BIN)/python -m coverage run $(PYTEST) -q -m "not chaos" $(COVERED) || echo "a test failed: make test judges it"
	$(MAKE) floors

floors: $(STAMP)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m tools.coverage_floors

check: $(STAMP) ## check formatting, lint, types, stale documents, known vulnerabilities
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tools.documents --check
	$(BIN)/python -m tools.audit

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## regenerate the generated pages of docs/
	$(BIN)/python -m tools.documents

COMPILE := uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
  --custom-compile-command 'make hashes' --python-version 3.11 --constraints constraints.txt
image: $(STAMP) ## build the container image and run it against the embedded stack (needs podman); PATIENCE=3 on a busy machine
	$(BIN)/python -m tools.image $(if $(PATIENCE),--patience $(PATIENCE))

hashes: ## list the hash of every file that the image installs; run after each change of constraints.txt (needs uv)
	$(COMPILE) --universal --extra otel --extra otel-grpc --extra sentry -o deploy/image/requirements.txt pyproject.toml
	printf 'hatchling\npip\n' | $(COMPILE) -o deploy/image/build.txt -

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mixed .contract .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

simulate: $(STAMP) ## run thousands of simulated worlds, starting at a random seed, which is printed; SEEDS=10000 START=0 JOBS=2
	$(BIN)/python -m ingest.testing.simulation --seeds $(or $(SEEDS),1000) $(if $(START),--start $(START)) $(if $(JOBS),--jobs $(JOBS))

wrong-settings: $(STAMP) ## check that every command refuses every wrong value of every setting with one line and exit code 2
	REPLAYS_TEST_ALL_COMMANDS=1 $(BIN)/python -m pytest -n 2 tests/e2e/test_wrong_settings.py

explore: $(STAMP) ## explore every order of events in a few small worlds on the real core, and check that planted bugs are found; BOUND=usual|large JOBS=2
	$(BIN)/python -m tools.explore --bounds $(or $(BOUND),usual) $(if $(JOBS),--jobs $(JOBS))

cost-search: $(STAMP) ## search for the most expensive messages, and compare them with the bounds of docs/cost.md; SECONDS=600 SEED=
	$(BIN)/python -m tests.cost.search --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

spec: $(STAMP) ## check the specification of the commit protocol, and check runs against it; SEEDS=20 START=0 FAULTS=1 LOGS=.chaos
	$(BIN)/python -m tools.spec --seeds $(or $(SEEDS),20) --start $(or $(START),0) $(if $(FAULTS),--faults $(FAULTS)) $(if $(LOGS),--logs $(LOGS))

chaos: $(STAMP) ## inject random faults into real processes, and check that nothing is lost; MINUTES=10 SEED=1 KAFKA=apache|tansu REDIS=sentinel PROTOCOL=consumer WRITE=storage DIRECTORY=.chaos
	$(BIN)/python -m tools.chaos --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1) --kafka $(or $(KAFKA),tansu) --redis $(or $(REDIS),single) --group-protocol $(or $(PROTOCOL),classic) $(if $(WRITE),--bigquery-write $(WRITE)) $(if $(DIRECTORY),--directory $(DIRECTORY))

mixed-versions: $(STAMP) ## run the previous release and this one side by side under load, upgraded in both orders; MINUTES=5 RATE=30 PLANTED=formats|lossy KAFKA=apache|tansu DIRECTORY=.chaos
	$(BIN)/python -m tools.mixed --minutes $(or $(MINUTES),5) $(if $(RATE),--rate $(RATE)) $(if $(PLANTED),--planted $(PLANTED)) $(if $(KAFKA),--kafka $(KAFKA)) $(if $(DIRECTORY),--directory $(DIRECTORY))

gameday: $(STAMP) ## inject twenty-two faults, and check each alert on a real Prometheus and the runbook's steps; writes .gameday/
	$(BIN)/python -m tools.gameday.run --json .gameday/gameday.json

bigquery-kills: $(STAMP) ## kill processes that write to BigQuery at each point between record and done mark, and check that each row is stored once; TIMES=200 SEED=1
	$(BIN)/python -m tools.bigquery_kills --times $(or $(TIMES),200) --seed $(or $(SEED),1)

bigquery-contract: $(STAMP) ## compare our BigQuery emulator and two others with Google's documentation (needs a package index, Python 3.13)
	$(BIN)/python -m tools.bigquery_contract --json tools/bigquery_contract/result.json

screenshots: $(STAMP) ## take the pictures of docs/images from a running system (needs chromium); SECONDS=240
	$(BIN)/python -m tools.screenshots $(if $(SECONDS),--seconds $(SECONDS))

live-sdks: $(STAMP) ## build each version of the SDK for browsers, record the shop of `try` with it, and compare the facts (needs npm, chromium); VERSIONS="7 8 9 10 11"
	$(BIN)/python -m tools.sdks $(or $(VERSIONS),7 8 9 10 11)

mutants: $(STAMP) ## plant bugs in the core, and check that a test finds each
	$(BIN)/python -m tests.mutation

bench: $(BENCH_STAMP) ## measure the cost of parsing, dispatch and the whole system; writes .bench/
	$(BIN)/python -m benchmarks.parse --json .bench/parse.json
	$(BIN)/python -m benchmarks.dispatch --json .bench/dispatch.json
	$(BIN)/python -m benchmarks.uploads --json .bench/uploads.json
	$(BIN)/python -m benchmarks.end_to_end --matrix --json .bench/matrix.json
	$(BIN)/python -m benchmarks.end_to_end --delays 150 --json .bench/delays.json
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),10) --json .bench/soak.json
	$(BIN)/python -m benchmarks.plots

bench-peers: $(BENCH_STAMP) $(STREAMS)/.installed ## compare the system with its peers on the same cores, in alternating rounds; ROUNDS=3
	$(BIN)/python -m benchmarks.end_to_end --peers --profiles default,small --rounds $(or $(ROUNDS),3) --processes 2 --threads 16 \
	  --segments 20000 --segments-of p1-json=6000,p5=6000 --json .bench/peers.json
	$(BIN)/python -m benchmarks.plots

bench-slow: $(BENCH_STAMP) ## compare the throughput with slow sinks with its prediction
	$(BIN)/python -m benchmarks.slow_sinks --json .bench/slow_sinks.json

bench-scale: $(BENCH_STAMP) ## measure the cost per segment with more readers and Redis servers, and plan for up to 1,000,000 segments/s with it
	$(BIN)/python -m benchmarks.scale_out --check --json .bench/scale_check.json
	$(BIN)/python -m benchmarks.scale_out --costs .bench/scale_check.json --json .bench/scale_out.json

bench-streams: $(STREAMS)/.installed ## create the environment of the peer P4, sentry-streams, whose dependencies conflict with ours

bench-uploads: $(STAMP) ## measure the cost of 503 and 429 from Cloud Storage to the whole system
	$(BIN)/python -m benchmarks.failing_uploads
