# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# OpenMP threads wait for each other in a busy loop. On a machine that has other work too, that made a training step on
# two cores take 2 to 6 s; with spin counts of 300 and 3000 it takes 0.18 and 0.26 s, and 0.11 s when alone, as ever.
export GOMP_SPINCOUNT ?= 1000

.PHONY: demo test lint margins bench record gpu packages audit-accept readme docs clean

demo: $(VENV)/.ready
	$(BIN)/crossmae demo

test: lint $(VENV)/.clients
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# How near the tests come to the error budget, over seeds and this CPU's sets of instructions; takes hours.
SEEDS ?= 20
margins: $(VENV)/.ready
	$(BIN)/python tests/margins.py --seeds $(SEEDS)

# Decoders and training steps are timed by `crossmae bench`, single operations by these suites.
SUITES := ceilings mixing attention mlp projection patches
DECODE := --depths 12 8 4 1 --prediction-ratios 0.25 0.75
bench: $(VENV)/.ready
	$(BIN)/crossmae bench --out bench/decode $(DECODE)
	$(BIN)/crossmae bench --out bench/step --part step --model crossmae_vit_small_patch16 --prediction-ratios 0.25
	rm -f bench/records.jsonl
	$(BIN)/python -m pytest benchmarks/bench_suites.py $(SUITES:%=--suite %) --record bench \
		--benchmark-json=bench/suites.json --benchmark-quiet -v
	$(BIN)/python -m pytest benchmarks/bench_training.py --benchmark-json=bench/training.json -q
	$(BIN)/python -m benchmarks.report bench

# The records of a CPU that docs/benchmarks.md shows, made anew; forty minutes, and nothing else may run.
record: $(VENV)/.ready
	$(BIN)/crossmae bench --out bench/decode --rounds 5 $(DECODE)
	cp bench/decode/decode.json benchmarks/results/
	for part in decoder step; do for dtype in float32 bfloat16; do \
		$(BIN)/crossmae bench --part $$part --dtype $$dtype --executions eager compiled --prediction-ratios 0.25 \
			--rounds 5 --out bench/$$part-$$dtype || exit 1; \
		cp bench/$$part-$$dtype/decode.json benchmarks/results/release/$$part-$$dtype.json; \
	done; done
	$(BIN)/crossmae bench --batch 64 --dtype bfloat16 --executions eager compiled --prediction-ratios 0.25 --rounds 5 \
		--out bench/decoder-bfloat16-64
	cp bench/decoder-bfloat16-64/decode.json benchmarks/results/release/decoder-bfloat16-64.json
	$(BIN)/python -m pytest benchmarks/bench_training.py \
		--benchmark-json=benchmarks/results/training.json --benchmark-quiet
	$(MAKE) readme

# compute-sanitizer (if installed), checks, tuning and every suite on an NVIDIA GPU within nine minutes, with the Python
# at hand: PyTorch, Triton, pytest and pytest-benchmark are all it needs. Again, and it goes on where it ended;
# `make gpu GPU=--full` takes as long as it takes.
GPU ?=
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU)

# What a machine with a GPU may lack, where there is a network; it goes along with the tree. Pure Python, all of it.
packages:
	$(PYTHON) -m pip install --quiet --upgrade --target .packages pytest-benchmark

# What each kernel may need of registers, instructions, bytes and time, written anew: look at what grew before.
audit-accept: $(VENV)/.ready
	$(BIN)/python -m crossmae_kernels.audit.budgets --accept

# The tables and pictures of docs/benchmarks.md, from the records under benchmarks/results and from nowhere else; and those
# of README.md, docs/planning.md and docs/pretraining.md, from these records or, as long as no GPU is among them, predicted.
readme: $(VENV)/.ready
	$(BIN)/python -m benchmarks.report benchmarks/results --page docs/benchmarks.md
	$(BIN)/python -m benchmarks.predictions.plans

# The documentation as a site, in site/.
docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/zensical build --clean --strict

# Made anew when what it installs changes; the stamp is written last, so a broken installation is not taken for a
# finished one.
$(VENV)/.ready: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $@

# Libraries whose models are served, for the tests of that; without what else they require, which could move PyTorch.
$(VENV)/.clients: $(VENV)/.ready tests/clients.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement tests/clients.txt
	@touch $@

clean:
	rm -rf $(VENV) .packages build site *.egg-info .mypy_cache .pytest_cache .ruff_cache
