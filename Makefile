# One command each to set up, serve, test, measure and keep tidy. `make` alone lists them.
#
# Three builds, never mixed: fast (in place, what runs), debug (build/debug/lib: all checks live) and sanitize
# (build/sanitize/lib: debug with AddressSanitizer and UBSan). The other two are reached by PYTHONPATH.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
ARGS ?=

# Debian keeps haproxy and nginx, which the tests run, where only root's path leads.
export PATH := $(PATH):/usr/sbin:/sbin

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/.stamps
RESULTS := build/results

SOURCES := setup.py $(shell find src host third_party -name '*.pyx' -o -name '*.px[di]' -o -name '*.h' -o -name '*.c')
CODE := $(SOURCES) $(shell find src host -name '*.py' -o -name '*.pyi' -o -name py.typed)

# The paranoid builds repeat the suites of the parts that are native or read what the host wrote.
PARANOID_TESTS := tests/wire tests/enclave tests/host tests/hostile
SANITIZED_TESTS := $(PARANOID_TESTS)
ASAN := LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc

PYTEST := $(PY) -m pytest -p no:cacheprovider

# The app that the end-to-end tests build with a toolchain of other people.
NOTES := build/guests/notes.wasm

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'variables: PYTHON=python3.11  VENV=.venv  ARGS="flags of enclave-os serve, or of pytest"'

# -- set up -----------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMPS)/fast ## venv, pinned packages, fast build in place

$(STAMPS)/venv:
	@.ci/system "$(or $(PYTHON),python3)"
	$(or $(PYTHON),python3) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/run: requirements/run.txt $(STAMPS)/venv
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The programs that the end-to-end tests run as clients and servers, and objdump, which looks at what was compiled.
$(STAMPS)/test: requirements/test.txt $(STAMPS)/run
	@.ci/system "$(or $(PYTHON),python3)" curl:curl openssl:openssl wrk:wrk objdump:binutils etcd:etcd-server haproxy:haproxy nginx:nginx-light
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(STAMPS)/bench: requirements/bench.txt $(STAMPS)/test
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@touch $@

# The module that the benchmark serves, a package of its own.
$(STAMPS)/bench-module: bench/module/pyproject.toml $(STAMPS)/package
	$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e bench/module
	@touch $@

# The package itself: only links into the checkout, so the extensions are left to the next rule.
$(STAMPS)/package: pyproject.toml README.md $(STAMPS)/run
	ENCLAVE_OS_ONLY=none $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(STAMPS)/fast: $(SOURCES) $(STAMPS)/package
	$(PY) setup.py -q build_ext --inplace --parallel $(JOBS)
	@touch $@

build/debug/.stamp: $(CODE) pyproject.toml $(STAMPS)/run
	ENCLAVE_OS_DEBUG=1 $(PY) setup.py -q build --build-lib build/debug/lib --build-temp build/debug/tmp --parallel $(JOBS)
	@touch $@

build/sanitize/.stamp: $(CODE) pyproject.toml $(STAMPS)/run
	ENCLAVE_OS_SANITIZE=1 $(PY) setup.py -q build --build-lib build/sanitize/lib --build-temp build/sanitize/tmp --parallel $(JOBS)
	@touch $@

.PHONY: debug sanitize
debug: build/debug/.stamp ## paranoid build, in build/debug/lib
sanitize: build/sanitize/.stamp ## AddressSanitizer and UBSan build, in build/sanitize/lib

# -- run --------------------------------------------------------------------------------------------------------------

.PHONY: serve
serve: $(STAMPS)/fast ## set everything up and serve on port 8443
	@exec $(BIN)/enclave-os serve --port 8443 --state-dir state $(ARGS)

# -- test -------------------------------------------------------------------------------------------------------------

# The fast suite waits most of its time, for servers and clients of one core each; the paranoid ones compute on one core.
# So they run beside each other where there are two, and what the latter say is shown when both have ended.
.PHONY: test test-fast test-paranoid test-debug test-sanitize hostile crash-store
test: ## set everything up and pass the tests: fast, paranoid and sanitizer builds
	@rm -rf $(RESULTS) && mkdir -p $(RESULTS)
	@$(MAKE) --no-print-directory $(STAMPS)/fast $(STAMPS)/test $(NOTES)
	@status=0; \
	$(MAKE) --no-print-directory -k -j$(JOBS) test-fast test-paranoid || status=1; \
	cat $(RESULTS)/paranoid.log || status=1; \
	$(or $(PYTHON),python3) .ci/total.py $(RESULTS) fast debug sanitize || status=1; \
	exit $$status

test-paranoid:
	@$(MAKE) --no-print-directory -k -j1 test-debug test-sanitize >$(RESULTS)/paranoid.log 2>&1

test-fast: $(STAMPS)/fast $(STAMPS)/test $(NOTES) ## the whole suite on the fast build
	$(PYTEST) --junit-xml=$(RESULTS)/fast.xml $(ARGS)

test-debug: build/debug/.stamp $(STAMPS)/fast $(STAMPS)/test ## the native and hostile parts on the paranoid build
	PYTHONPATH=build/debug/lib $(PYTEST) --junit-xml=$(RESULTS)/debug.xml $(PARANOID_TESTS) $(ARGS)

test-sanitize: build/sanitize/.stamp $(STAMPS)/fast $(STAMPS)/test ## the same under AddressSanitizer and UBSan
	$(ASAN) PYTHONPATH=build/sanitize/lib $(PYTEST) --junit-xml=$(RESULTS)/sanitize.xml $(SANITIZED_TESTS) $(ARGS)

.PHONY: test-direct
test-direct: $(STAMPS)/fast $(STAMPS)/test $(NOTES) ## the end-to-end suite with the enclave under gramine-direct
	$(PYTEST) tests/e2e --enclave direct $(ARGS)

EVENTS ?= 1000000000
hostile: build/sanitize/.stamp $(STAMPS)/fast $(STAMPS)/test ## the lying host at length: 1e6 RPC calls, 1e6 frames searched, EVENTS=1e9 rewritten words
	$(PY) -m tests.hostile.rpc_faults --calls 1000000
	ENCLAVE_OS_SECRET_FRAMES=1000000 $(PYTEST) -q --timeout 3600 tests/hostile/test_ingress_secrets.py
	$(PY) -m tests.hostile.ring_storm --events $(EVENTS)
	$(ASAN) PYTHONPATH=build/sanitize/lib $(PY) -m tests.hostile.ring_storm --events $$(( $(EVENTS) / 100 ))

.PHONY: hostile-wasm
hostile-wasm: $(STAMPS)/fast $(STAMPS)/test ## apps that ask for too much, in full: 1e5 functions and names, 50 MiB, endless, too deep (minutes)
	$(PY) -m tests.modules.wasm_siege

ROUNDS ?= 1000
crash-store: $(STAMPS)/fast $(STAMPS)/test ## kill -9 the host's store ROUNDS=1000 times, and look for what it acknowledged
	$(PY) -m tests.host.store_crash --rounds $(ROUNDS)

PUTS ?= 10000000
.PHONY: nonces
nonces: $(STAMPS)/fast $(STAMPS)/test ## no key and nonce twice in PUTS=1e7 records through a hundred kills and restores
	$(PY) -m tests.hostile.nonces --puts $(PUTS)

TOKENS ?= 100000
.PHONY: fuzz-jwt
fuzz-jwt: $(STAMPS)/fast $(STAMPS)/test ## TOKENS=100000 spoilt bearer tokens, of which none may be accepted (minutes)
	$(PY) -m tests.fuzz.fuzz_jwt --tokens $(TOKENS)

INPUTS ?= 100000
.PHONY: fuzz-evidence
fuzz-evidence: $(STAMPS)/fast $(STAMPS)/test ## INPUTS=100000 spoilt quotes and collateral, by none of which the process ends (minutes)
	$(PY) -m tests.fuzz.fuzz_evidence --inputs $(INPUTS)

N ?= 1000
RANGES ?= 1
WORKERS ?= 1
.PHONY: crash mitm
crash: $(STAMPS)/fast $(STAMPS)/test ## kill host, enclave or both N=1000 times under 32 writers, and look for what was acknowledged (RANGES=4 WORKERS=3: of a store in ranges)
	$(PY) -m tests.e2e.crash --rounds $(N) --ranges $(RANGES) --workers $(WORKERS)

SEEDS ?= 1000
.PHONY: siege
siege: $(STAMPS)/fast $(STAMPS)/test ## SEEDS=1000 hosts that start workers twice, fork what they store, cut off and delay: never two truths
	$(PY) -m tests.modules.ranges_siege --seeds $(SEEDS)

mitm: $(STAMPS)/fast $(STAMPS)/test ## a thief of the leaf's key in the middle, over sockets: N=1000 refused, 1000 accepted
	$(PY) -m tests.hostile.mitm --runs $(N)

# The components that tests run, from their sources in sdk/: needs clang 14 with lld and wasi-libc (Debian: clang-14 lld-14
# wasi-libc libclang-rt-14-dev-wasm32), Node.js, and the npm registry. What comes out is checked in.
GUESTS := tests/modules/guests
JCO := build/guests/node_modules/@bytecodealliance/jco
.PHONY: guests guests-python guests-js
$(JCO):
	@.ci/system "$(or $(PYTHON),python3)" npm:npm
	@mkdir -p build/guests && cp sdk/componentize.mjs build/guests/
	npm install --silent --prefix build/guests @bytecodealliance/jco@1.15.0

guests: $(JCO) ## build the small components that the tests run, anew
	@.ci/system "$(or $(PYTHON),python3)" clang-14:clang-14 wasm-ld-14:lld-14
	clang-14 --target=wasm32-wasi --sysroot=/usr -O2 -Wall -mexec-model=reactor -Wl,--strip-all \
		-o build/guests/probe.core.wasm sdk/examples/probe-c/probe.c
	$(or $(PYTHON),python3) sdk/flatten.py sdk/examples/probe-c/probe.wit build/guests/probe.wit
	cp sdk/componentize.mjs build/guests/ && cd build/guests && node componentize.mjs probe.core.wasm \
		$(CURDIR)/$(GUESTS)/probe.wasm probe probe.wit $(CURDIR)/$(JCO)/lib/wasi_snapshot_preview1.reactor.wasm
	clang-14 --target=wasm32-wasi --sysroot=/usr -O2 -Wall -nostartfiles -Wl,--no-entry -Wl,--strip-all \
		-o build/guests/tcp.core.wasm sdk/examples/tcp-c/tcp.c
	$(or $(PYTHON),python3) sdk/flatten.py sdk/examples/tcp-c/tcp.wit build/guests/tcp.wit
	cd build/guests && node componentize.mjs tcp.core.wasm $(CURDIR)/$(GUESTS)/tcp.wasm tcp-guest tcp.wit
	cd $(GUESTS) && sha256sum *.wasm > SHA256SUMS

# An app that every run of the tests makes anew, by a toolchain from PyPI that requirements/test.txt pins: 18 MB.
$(NOTES): $(wildcard sdk/examples/notes-py/*) sdk/wit/enclave-os.wit sdk/flatten.py $(STAMPS)/test
	@mkdir -p build/guests
	$(PY) sdk/flatten.py sdk/examples/notes-py/notes.wit build/guests/notes.wit
	$(BIN)/componentize-py -q -d build/guests/notes.wit -w notes componentize -p sdk/examples/notes-py app -o $@.new
	@mv $@.new $@

guests-python: $(NOTES) ## build sdk/examples/notes-py with componentize-py into build/guests (10 s); the tests do

guests-js: $(JCO) ## build sdk/examples/notes-js with componentize-js into build/guests (half a minute, 11 MB)
	$(or $(PYTHON),python3) sdk/flatten.py sdk/examples/notes-js/notes.wit build/guests/words.wit
	cp sdk/componentize-js.mjs build/guests/ && cd build/guests && node componentize-js.mjs \
		$(CURDIR)/sdk/examples/notes-js/app.js words.wasm words words.wit

# -- measure ----------------------------------------------------------------------------------------------------------

.PHONY: bench bench-peers
bench: $(STAMPS)/fast $(STAMPS)/test $(STAMPS)/bench-module ## measure everything (docs/performance.md, bench/README.md)
	$(PYTEST) bench/ --benchmark-autosave $(ARGS)

bench-peers: $(STAMPS)/bench $(STAMPS)/package ## install what the bench compares with: nginx, wrk, uvicorn, granian
	@.ci/system "$(PYTHON)" nginx:nginx-light wrk:wrk
	$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e bench/module

# -- keep tidy --------------------------------------------------------------------------------------------------------

.PHONY: tidy requirements docs annotate clean
tidy: $(STAMPS)/fast $(STAMPS)/test ## ruff, mypy --strict, stubtest, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -q tests/house $(ARGS)

docs: $(STAMPS)/fast ## write the pages that are generated from the code
	$(BIN)/enclave-os config reference > docs/configuration.md
	$(BIN)/enclave-os config example > enclave-os.example.toml

# uv resolves from pyproject.toml without building it, and writes the hashes of every wheel and sdist.
UV_COMPILE = build/uv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make requirements" pyproject.toml
requirements: $(STAMPS)/venv ## pin every dependency anew, with hashes
	$(PY) -m venv build/uv && build/uv/bin/pip install -q uv
	$(UV_COMPILE) --upgrade --extra build --extra client --extra test --extra bench -o requirements/bench.txt
	$(UV_COMPILE) -c requirements/bench.txt --extra build --extra client --extra test -o requirements/test.txt
	$(UV_COMPILE) -c requirements/bench.txt --extra build --extra client -o requirements/run.txt

annotate: $(STAMPS)/fast ## where each native touches Python: HTML pages
	@find build/cython-fast -name '*.html'

clean: ## remove everything that was built, but not the venv and not state/
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info *.egg-info
	find src host tests bench -name '__pycache__' -type d -prune -exec rm -rf {} +
	find src host -name '*.so' -delete
	rm -f $(STAMPS)/fast $(STAMPS)/package
