# make demo: everything from a fresh clone to a report. make test: linter, types, all tests.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := python3
PIP := $(BIN)/pip --disable-pip-version-check install --quiet
HASHED := $(PIP) --no-deps --require-hashes --requirement

.PHONY: demo test lint types docs pictures results results-gpu results-table bench bench-gpu dist audit clean

demo: $(VENV)/train.stamp
	@rm -rf runs/demo
	$(BIN)/cssoftmax train digits --loss softmax --output runs/demo/softmax --quiet >/dev/null
	$(BIN)/cssoftmax train digits --loss cs-softmax --output runs/demo/cs-softmax --quiet >/dev/null
	$(BIN)/cssoftmax report runs/demo/softmax runs/demo/cs-softmax --output runs/demo/report

test: lint types
	$(BIN)/pytest --numprocesses auto

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy

# The documentation, into site/: it works from disk, without a network.
docs: $(VENV)/test.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site
	@echo "documentation: site/index.html"

pictures: $(VENV)/test.stamp
	$(BIN)/python tools/draw_docs.py

results-table: $(VENV)/test.stamp
	$(BIN)/python tools/render_tables.py

# What the loss costs on this machine, beside others: about 15 minutes; the files are in results/bench/.
bench: $(VENV)/test.stamp
	$(BIN)/cssoftmax bench head --output results/bench
	$(BIN)/cssoftmax bench head --classes 100000 --batch-size 1024 --repeats 3 --output results/bench
	$(BIN)/cssoftmax bench step --output results/bench

# The same on an NVIDIA GPU, unattended, with liger-kernel and cut-cross-entropy where they are installed; the kernels
# are first checked against the float64 reference there.
bench-gpu: $(VENV)/test.stamp
	TRITON_INTERPRET=0 $(BIN)/pytest tests/engine/test_triton.py
	$(BIN)/cssoftmax bench head --device cuda --output results/bench-gpu
	$(BIN)/cssoftmax bench head --device cuda --dtype bfloat16 --output results/bench-gpu/bf16
	$(BIN)/cssoftmax bench head --device cuda --dtype bfloat16 --batch-size 8192 --embedding-size 512 \
		--classes 1000000 --output results/bench-gpu/large
	$(BIN)/cssoftmax bench step --device cuda --output results/bench-gpu

# Hours on a CPU; interrupted, it goes on where it stopped. DATA is a folder with the data sets, or empty for the hub.
results: $(VENV)/train.stamp
	$(BIN)/python tools/run_recipes.py $(if $(DATA),--data-root $(DATA))

# Five seeds of everything, and the networks that are too large for a CPU.
results-gpu: $(VENV)/train.stamp
	$(BIN)/python tools/run_recipes.py --gpu $(if $(DATA),--data-root $(DATA))

# Wheel, source archive, and a bill of materials (CycloneDX): every package that cssoftmax[train] was tested with.
dist: $(VENV)/dist.stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/cyclonedx-py requirements $(VENV)/demo.txt --pyproject pyproject.toml --mc-type library \
		--output-reproducible --of JSON --output-file dist/cssoftmax.cdx.json

# Known weaknesses of the pinned versions; asks the index and osv.dev.
audit: $(VENV)/dist.stamp
	$(BIN)/pip-audit --no-deps --disable-pip --requirement constraints.txt

clean:
	rm -rf $(VENV) build dist site runs/demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; give a newer one: make demo PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The pins are all that is needed, and all that those need; pip need not search. torch comes first and by its pin alone:
# among builds that it knows the hash of pip would not take a smaller one at hand. What is left to add to it in the end
# is the libraries of its CUDA build, where it is one.
$(VENV)/train.stamp: pyproject.toml constraints.txt | $(BIN)/python
	sed '/^# make test/,$$d' constraints.txt > $(VENV)/demo.txt
	$(PIP) --no-deps "$$(grep -o '^torch==[0-9.]*' constraints.txt)"
	$(HASHED) $(VENV)/demo.txt
	$(PIP) torch
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/train.stamp
	sed '/^# make dist/,$$d' constraints.txt > $(VENV)/test.txt
	$(HASHED) $(VENV)/test.txt
	$(BIN)/pip --disable-pip-version-check check
	@touch $@

$(VENV)/dist.stamp: $(VENV)/test.stamp
	$(HASHED) constraints.txt
	@touch $@
