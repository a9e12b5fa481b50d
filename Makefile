# make demo     train and evaluate a reward model end to end on the carried data
# make test     lint, types and the whole suite
# make faults   200 faults (kills, full disks, damage, doubles) and what became of them
# make docs     the documentation site, into site/: needs no network, and neither do its pages
# make install  the set-up alone: .venv with pinned dependencies, their hashes checked, and the embedded LLM
# make lock     the pins anew, from pyproject.toml; make audit: known vulnerabilities of what is pinned

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install lock audit demo test faults docs bench-quick clean

install: $(READY)

# Only files whose hashes stand in a lock are installed. pip and setuptools come first and alone: the two packages that
# have no wheel are then built with them, where an isolated build would fetch others, of any version and hash.
# torch's CPU build goes in where pip has it at hand. CUDA comes only with a torch that names it among its needs, as the
# public build for Linux does.
PIP := $(BIN)/python -m pip install --require-hashes --no-deps
$(READY): pyproject.toml $(wildcard requirements*.lock)
	$(PYTHON) -c 'import sys; sys.exit("Penchant needs Python 3.10 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n '/^\(pip\|setuptools\)==/,/[^\\]$$/p' requirements.lock > $(VENV)/build.lock
	$(PIP) --quiet --requirement $(VENV)/build.lock
	$(PIP) --quiet --requirement requirements-cpu.lock 2>/dev/null || echo "no CPU build of torch at hand, so the public one"
	$(PIP) --no-build-isolation --requirement requirements.lock
	if grep -q '^Requires-Dist: nvidia-' $(VENV)/lib/python*/site-packages/torch-*.dist-info/METADATA; then \
	    $(PIP) --requirement requirements-cuda.lock; fi
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $(READY)

# Needs uv, and an index. UPGRADE="name name" takes these packages' newest versions; the others stay.
lock:
	$(PYTHON) scripts/lock.py $(UPGRADE)

# Asks a public service (pypi, osv or esms) for known vulnerabilities of what the locks pin; one that cannot tell of a
# package fails too. SECURITY.md says what was found.
SERVICE := pypi
audit: install
	for lock in requirements.lock requirements-cuda.lock; do \
	    $(BIN)/pip-audit --strict --vulnerability-service $(SERVICE) --require-hashes --disable-pip --requirement $$lock \
	    || exit 1; done

demo: install
	$(BIN)/penchant demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations=15

faults: install
	$(BIN)/python -m tests.faults --count 200 --seed 0

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench-quick: install
	for name in encode reward_accuracy vs_trl lens sparse serve scale; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

clean:
	rm -rf $(VENV) build dist site *.egg-info
