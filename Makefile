# make demo   the whole pipeline on an embedded world: no download beyond the packages
# make test   the test suite; Horovod is built first where it is not (minutes, once), HOROVOD=0 leaves it and its tests out;
#             a Milvus server is installed in an environment of its own (57 MB, once), MILVUS=0 leaves it and its tests out;
#             the page is tried in Chromium where it is installed (apt-get install chromium), BROWSER=0 leaves that out
# make campaign CASES=10000   damaged files, odd words, kills, full disks, two at once: what each command makes of them
#             (docs/reliability.md); SEED=1 draws others, JOBS=2 runs so many cases at a time, ONLY=index takes targets of that name
# make lint   style checks, that imports run one way, and types of what a Python user imports
PYTHON ?= python3
BIN = .venv/bin

HOROVOD ?= 1
MILVUS ?= 1
GPU ?= $(if $(shell nvidia-smi -L 2>/dev/null),1,0)
# processes that the suite, and the campaign, run in
JOBS ?= 2
BROWSER ?= $(if $(shell command -v chromium || command -v chromium-browser || command -v google-chrome),1,0)
# markers of the tests that are left out
WITHOUT := $(strip $(if $(filter 0,$(BROWSER)),browser) $(if $(filter 0,$(HOROVOD)),horovod) $(if $(filter 0,$(MILVUS)),milvus_server) $(if $(filter 0,$(GPU)),gpu))

CASES ?= 1000
SEED ?= 0
ONLY ?=

.PHONY: demo test campaign lint clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

test: .venv/installed $(if $(filter 0,$(MILVUS)),,.venv-milvus/installed)
ifneq ($(HOROVOD),0)
	scripts/build_horovod.sh --python $(BIN)/python
endif
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile $(if $(WITHOUT),-m "not ($(subst $() $(), or ,$(WITHOUT)))")

campaign: .venv/installed
	$(BIN)/python tests/campaign/run.py --cases $(CASES) --seed $(SEED) --jobs $(JOBS) --only '$(ONLY)' $(CAMPAIGN)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

.venv/installed: requirements.txt tests/requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than 3.10; call make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install -r requirements.txt -r tests/requirements.txt -c constraints.txt
	touch $@

# the server's package asks for none of ours, and is years older: it shares nothing with .venv
.venv-milvus/installed:
	$(PYTHON) -m venv .venv-milvus
	.venv-milvus/bin/pip install --quiet setuptools milvus==2.3.5
	touch $@

clean:
	rm -rf .venv .venv-milvus runs
