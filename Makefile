# Targets make their own environment: .venv, once, with the versions of deploy/constraints.txt.
# pip reads its own configuration for where packages come from.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
BODY := $(VENV)/.body
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check kafka bench-worker bench-latency bench-three bench-scale bench-memory
.PHONY: bench-limit bench-peers bench-delivery bench-shared bench-variants bench-alerts bench-rebuild bench-watch
.PHONY: simulate kills storms outages upgrade chaos fuzz starter starter-gpu schemas lock clean

help: ## This list
	@echo "make <target>, with ARGS=\"...\" passed on:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

demo: $(READY) ## A simulated shop through worker, profiles and alerts, with a live view (ARGS="--events 2000 --exit --json")
	$(VENV)/bin/millrace demo $(ARGS)

test: $(READY) ## All tests; those on Kafka, Redis and pages where the machine has Java, Maven, redis-server, chromium
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15 $(ARGS)

check: $(READY) ## Lint, format and strict types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

kafka: ## Apache Kafka on 127.0.0.1:9092, fetched by Maven; Ctrl-C stops it (ARGS="--port 9192")
	deploy/kafka/kafka run $(ARGS)

bench-worker: $(READY) ## Events per second of the worker and how busy the encoder is; one JSON line last
	$(PY) -m tests.bench.bench_worker $(ARGS)

bench-latency: $(READY) ## Event to score per lane from 10 % to 200 % of capacity, by stage; ARGS=--quick
	$(PY) -m tests.bench.bench_latency $(ARGS)

bench-three: $(READY) ## One shared encoder against three separate ones: events per second and memory
	$(PY) -m tests.bench.bench_three $(ARGS)

bench-scale: $(READY) ## 1, 2, 4, 8 worker processes on a device that sleeps, against the capacity model
	$(PY) -m tests.bench.bench_scale $(ARGS)

bench-memory: $(READY) ## Is memory flat over ten million events (hours)? ARGS="--events 300000" for minutes
	$(PY) -m tests.bench.bench_memory $(ARGS)

bench-limit: $(READY) ## Tokens per second of the encoder against its matrix products alone; one JSON line last
	$(PY) -m tests.bench.bench_limit $(ARGS)

bench-peers: $(READY) ## Events per second against Faust, quixstreams, infinity, LitServe, Hugging Face; one JSON line last
	$(PY) -m tests.bench.bench_peers $(ARGS)

bench-delivery: $(READY) ## What exactly once costs, on a real broker: a ratio; one JSON line last
	$(PY) -m tests.bench.bench_delivery $(ARGS)

bench-shared: $(READY) $(BODY) ## One shared model against one a task: same size, same steps, paired; one JSON line last
	$(PY) -m tests.bench.bench_shared $(ARGS)

bench-variants: $(READY) $(BODY) ## The recipe's options beside the recipe, paired, resumable; one JSON line last (ARGS="--only famo ple")
	$(PY) -m tests.bench.bench_variants $(ARGS)

bench-rebuild: $(READY) ## Users a second that profiles rebuilds into an empty Redis; one JSON line last (ARGS="--users 200000")
	$(PY) -m tests.bench.bench_rebuild $(ARGS)

fuzz: $(READY) ## Any bytes give an event or a dead letter (ARGS="--inputs 100000 --seed 1"); one JSON line last
	$(PY) tests/fuzz/fuzz_decode.py $(ARGS)

simulate: $(READY) ## The worker's core and profiles under seeded faults, replayable (ARGS="--seeds 100000 --from 0")
	$(PY) -m tests.simulation $(ARGS)

kills: $(READY) ## kill -9 at every point of a transaction's life, on a real broker (ARGS="--times 50")
	$(PY) -m tests.chaos.kills $(ARGS)

storms: $(READY) ## One worker becomes eight becomes three, under each group protocol (ARGS="--times 100")
	$(PY) -m tests.chaos.storms $(ARGS)

outages: $(READY) ## How long readers stall after kill -9, scoring without Redis, folds again (ARGS="stall redis replays")
	$(PY) -m tests.chaos.outages $(ARGS)

upgrade: $(READY) ## An earlier release becomes this one and back, process by process (ARGS="--times 5")
	$(PY) -m tests.chaos.upgrade $(ARGS)

chaos: $(READY) ## Everything broken at once on three real brokers (ARGS="--events 1000000 --faults 300 --seed 1")
	$(PY) -m tests.chaos $(ARGS)

bench-alerts: $(READY) ## Alerts against injected truth, beside three textbook detectors; one JSON line last (ARGS=--quick)
	$(PY) -m tests.bench.bench_alerts $(ARGS)

bench-watch: $(READY) ## The alerts role on a real broker: opinions a second, opinion to alert; one JSON line last
	$(PY) -m tests.bench.bench_watch $(ARGS)

starter: $(READY) $(BODY) ## Train the starter artifact again from the data files, within 150 minutes (ARGS=--resume)
	$(PY) -m model.training.train --minutes 110 $(ARGS)

starter-gpu: $(READY) $(BODY) ## The same on a GPU, with teachers of other bodies
	$(PY) -m model.training.train --recipe model/training/starter-gpu.yaml --device cuda --minutes 20 $(ARGS)

schemas: $(READY) ## Write schemas/json from the types
	$(PY) -m schemas

lock: $(READY) ## Write the versions in .venv to deploy/constraints.txt
	@{ sed -n '1p' deploy/constraints.txt; $(PY) -m pip freeze --exclude-editable | sed 's/+c[pu0-9]*$$//'; } > deploy/constraints.new
	@mv deploy/constraints.new deploy/constraints.txt

clean: ## Remove the environment, caches and what local servers wrote
	rm -rf $(VENV) .venv-peers .millrace/kafka-* .millrace/alerts .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Millrace needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "venv is missing: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV): once, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --constraint deploy/constraints.txt --editable '.[dev]'
	@touch $@

# The pretrained body that the starter begins with: only training needs it.
$(BODY): $(READY)
	$(PY) -m pip install --disable-pip-version-check --constraint deploy/constraints.txt --editable '.[dev,body]'
	@touch $@
