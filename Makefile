# make demo and make test make .venv from the python3 at hand on first use;
# make PYTHON=python3.12 <target> takes another.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK := requirements-$(VERSION).txt
STAMP := $(VENV)/installed-$(VERSION)
DEMO := runs/demo
# Another Python with torch and transformers, which make parity asks.
ORACLE_PYTHON ?= python3.11
ORACLE := .venv-parity
ORACLE_LOCK := third_party/transformers/requirements.txt
ORACLE_STAMP := $(ORACLE)/installed

.PHONY: demo test test-all lint parity bench faults lock clean

demo: $(STAMP)
	$(RUN)/seekax train --config=demo --workdir=$(DEMO)
	$(RUN)/seekax generate --checkpoint=$(DEMO) --prompt='def main(' \
	  --max_new_tokens=64 --temperature=0.7
	@echo; echo "Open $(DEMO)/report.html in a browser."

test: $(STAMP)
	$(RUN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m 'not slow'

test-all: $(STAMP)
	$(RUN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyrefly check

# Against Hugging Face transformers, live. make parity PARITY=--run=runs/demo
# takes a trained model of yours; the other flags are in parity.py.
parity: $(STAMP) $(ORACLE_STAMP)
	$(RUN)/python third_party/transformers/parity.py \
	  --oracle=$(ORACLE)/bin/python $(PARITY)

# Times and memory, beside the peers; takes 15 to 20 minutes and 26 GB of disk.
# The last one prints the table and writes experiments/benchmarks/results.json.
bench: $(STAMP) $(ORACLE_STAMP)
	$(RUN)/python experiments/benchmarks/conversion.py
	$(RUN)/python experiments/benchmarks/cached_decode.py
	$(RUN)/python experiments/benchmarks/kernels.py
	$(RUN)/python experiments/benchmarks/against_transformers.py \
	  --oracle=$(ORACLE)/bin/python

# Injects faults into short runs: N faults, N promises kept. faults FAULTS=--only=F9
# takes some.
faults: $(STAMP)
	$(RUN)/python tests/faults/run.py $(FAULTS)

# The lock files hold hashes and no index addresses. They are made again from
# setup.py with uv (pip install uv), which reads any Python's versions.
lock:
	for version in 3.11 3.12 3.13; do \
	  uv pip compile --quiet --python-version $$version --generate-hashes \
	    --no-emit-index-url --no-header --no-annotate --extra dev \
	    --output-file requirements-$$version.txt setup.py || exit 1; \
	done

clean:
	rm -rf $(VENV) $(ORACLE) .pytest_cache .ruff_cache

$(STAMP): $(LOCK) setup.py
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --require-hashes -r $(LOCK)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation -e .
	touch $@

# torch alone first, so that pip takes the build that it is told to take.
$(ORACLE_STAMP): $(ORACLE_LOCK)
	rm -rf $(ORACLE)
	$(ORACLE_PYTHON) -m venv $(ORACLE)
	$(ORACLE)/bin/python -m pip install --quiet --disable-pip-version-check \
	  "$$(grep '^torch==' $(ORACLE_LOCK))"
	$(ORACLE)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r $(ORACLE_LOCK)
	touch $@

requirements-%.txt:
	@echo "seekax supports Python 3.11, 3.12 and 3.13; $(PYTHON) is $*." \
	  "Try make PYTHON=python3.12" >&2; exit 2
