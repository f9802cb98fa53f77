# Two commands matter: `make demo` and `make test`. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ORACLE := .venv-oracle
INFINITY := .venv-infinity
CLIENTS := .venv-clients
CONF := ray_jobs/conf/demo.yaml
SEEDS ?= 5
GPU_PYTHON ?= $(BIN)/python
SEED_FROM ?= 0
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow families test-gpu faults oracle bench-transfer bench-matrix bench-resume bench-shards bench-train bench-embed bench-recipes bench-serve soak fuzz-serve clients manifests lint format serve clean sample

help: ## show this help
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## create .venv, install the pinned packages, build DeepSpeed's CPU communication op once

# torch comes first and by itself: pip then takes a build for this machine (a CPU build where no GPU one is offered),
# and nothing after it asks for another.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[demo,sources,dev]'
	$(BIN)/python -m trainer.deepspeed_bridge.build_ops
	@touch $(STAMP)

demo: $(STAMP) ## the main job: an English encoder becomes a served Greek embedder; prints a table and the report's path
	$(BIN)/scion pipeline $(CONF)

# What needs no Ray runs in a process a core; the rest shares one Ray cluster, and starts processes of its own.
test: $(STAMP) ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical tests/unit tests/contract tests/property
	$(BIN)/python -m pytest -q tests/integration tests/serve tests/storage

test-slow: $(STAMP) ## what `make test` leaves out for time: more world sizes, set-ups and compiled graphs (about 45 minutes)
	$(BIN)/python -m pytest -q -m slow
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families

families: $(STAMP) ## every model family through transfer, verify, pretrain, embed and loading; the table of the docs (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families --write docs/families.md

# On a GPU machine that has no package registry: make test-gpu GPU_PYTHON=python3
test-gpu: ## what only a GPU can show: FlexAttention, compiled graphs, each ZeRO stage, speed (10 minutes on one GPU; else it says so)
	$(GPU_PYTHON) -m tests.gpu

faults: $(STAMP) ## training under seeded faults, broken copies that must be caught, each fault by itself: SEEDS=5 SEED_FROM=0
	$(BIN)/python -m tests.faults --seeds $(SEEDS) --seed-from $(SEED_FROM) --mutants
	$(BIN)/python -m pytest -q tests/faults

oracle: $(ORACLE)/.ready ## our algorithms against other people's packages, in an environment of their own
	$(ORACLE)/bin/python -m pytest -q tests/oracle

bench-transfer: $(ORACLE)/.ready ## transfer kernels beside wechsel, deepfocus and NumPy: CPU time and memory (about 20 minutes)
	$(ORACLE)/bin/python -m tests.benchmarks.transfer

bench-matrix: $(STAMP) ## every method on a source of every family, tied and untied, each result verified
	$(BIN)/python -m tests.benchmarks.transfer_matrix

bench-resume: $(ORACLE)/.ready ## first batch after a resume beside Trainer's skipping and torchdata's StatefulDataLoader (about 25 minutes)
	$(ORACLE)/bin/python -m tests.benchmarks.resume

bench-shards: $(ORACLE)/.ready ## text to shards beside datatrove and datasets.map, in eight languages (10 minutes; fetches text with apt-get)
	$(ORACLE)/bin/python -m tests.benchmarks.shard_build

bench-train: $(ORACLE)/.ready ## training beside Hugging Face's Trainer, what Ray costs, and where a step's time goes (about 40 minutes on a CPU)
	$(ORACLE)/bin/python -m trainer.deepspeed_bridge.build_ops
	$(ORACLE)/bin/python -m tests.benchmarks.train_cpu
	$(ORACLE)/bin/python -m tests.benchmarks.ray_overhead
	$(ORACLE)/bin/python -m tests.benchmarks.step_profile

bench-embed: $(ORACLE)/.ready ## contrastive training beside sentence-transformers' cached loss, and LIMIT (about an hour on a CPU)
	$(ORACLE)/bin/python -m trainer.deepspeed_bridge.build_ops
	$(ORACLE)/bin/python -m tests.benchmarks.embed
	$(ORACLE)/bin/python -m tests.benchmarks.limit

bench-recipes: demo ## what each recipe for embedders changes, on the demo's model (many hours on a CPU; it goes on where it stopped)
	$(BIN)/python -m tests.benchmarks.recipes

$(INFINITY)/.ready:
	$(PYTHON) -m venv $(INFINITY)
	$(INFINITY)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" "infinity-emb[server,torch]==0.0.78" \
		"transformers==4.49.*" "optimum==1.24.*" "sentence-transformers==3.4.*" "click<8.2"
	@touch $(INFINITY)/.ready

bench-serve: $(STAMP) $(INFINITY)/.ready $(ORACLE)/.ready ## the endpoint under load beside infinity and FastAPI (about 25 minutes on a CPU)
	$(BIN)/python -m tests.benchmarks.serve --infinity $(INFINITY) --fastapi $(ORACLE)

soak: $(STAMP) ## the endpoint under load while replicas are killed and models replaced, on Ray and without (25 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.serve_soak --host ray
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.serve_soak --host process

fuzz-serve: $(STAMP) ## the endpoint under 10,000 hostile bodies, slow, idle and deaf clients (5 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.serve_fuzz

$(ORACLE)/.ready: pyproject.toml constraints.txt tests/oracle/peers.txt
	$(PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet --upgrade pip setuptools wheel -c constraints.txt
	$(ORACLE)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	DS_BUILD_OPS=0 $(ORACLE)/bin/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev,sources]'
	$(ORACLE)/bin/python -m pip install --quiet --no-deps -r tests/oracle/peers.txt
	@touch $(ORACLE)/.ready

$(CLIENTS)/.ready: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -r tests/clients/requirements.txt
	@touch $(CLIENTS)/.ready

clients: $(STAMP) $(CLIENTS)/.ready ## the endpoint asked by langchain, llama-index, LiteLLM and Cohere's client, unchanged (2 minutes)
	SCION_PYTHON=$(abspath $(BIN)/python) $(CLIENTS)/bin/python -m pytest -q -p no:cacheprovider --confcutdir tests/clients -c /dev/null tests/clients

manifests: $(STAMP) ## the documents for Kubernetes: rendered, validated, broken in 34 ways, with typos (a minute; needs npm)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.manifests

lint: $(STAMP) ## ruff, mypy, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP) ## rewrite the code in the house's layout
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

serve: $(STAMP) ## serve the demo's embedder until Ctrl-C
	$(BIN)/scion serve $(CONF)

sample: $(STAMP) ## rebuild the sample text from Debian's packages
	$(BIN)/python -m data_pipeline.sources.libreoffice_help --language el --output data_pipeline/sources/sample

clean: ## remove the environment and all runs
	rm -rf $(VENV) $(ORACLE) runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
