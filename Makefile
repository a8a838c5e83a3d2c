# berth: `make` lists the targets.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/berth-dev/berth/host/cli.Version=$(VERSION)
PLUGINS := $(notdir $(patsubst %/main.go,%,$(wildcard plugins/*/main.go)))
TOOL    := go tool -modfile=tools/go.mod
BENCH   ?= .

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the host, the plugins and the action server into bin/
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/berth ./host
	go build -trimpath -ldflags '-s -w' -o bin/berth-action-server ./examples/action-server
	$(foreach p,$(PLUGINS),go build -trimpath -ldflags '-s -w' -o bin/plugins/berth-provider-$(p) ./plugins/$(p) &&) true

.PHONY: run
run: build ## the main job, end to end, on this machine: connect, act, disconnect
	go run ./examples/quickstart

.PHONY: test
test: ## all tests, with the race detector
	go test -race ./...

.PHONY: check
check: ## everything a change must pass: format, vet, lint, wire contract, generated code, other platforms, tests
	scripts/check
	$(MAKE) test

.PHONY: e2e
e2e: ## the slow suite, in a fresh clone with empty caches: the main job twice, the plugin author's tutorial
	scripts/e2e

.PHONY: chaos
chaos: build ## kill, stop and rob berth at every step, and hold the clouds against the records: ARGS="--short", "--seed N"
	$(foreach p,daytona e2b modal runloop,go build -trimpath -ldflags '-s -w' -o bin/sim/$(p) ./plugins/$(p)/sim/cmd &&) true
	go build -trimpath -ldflags '-s -w' -o bin/berth-chaos ./internal/chaos
	scripts/postgres bin/berth-chaos $(ARGS)

.PHONY: bench
bench: build ## figures against the budgets
	go test -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 20m ./internal/bench

.PHONY: contract
contract: ## hold the simulated clouds to the providers' own SDKs (npm, PyPI)
	scripts/contract/all

.PHONY: test-postgres
test-postgres: ## the records' tests on a PostgreSQL server, which is installed and started for them
	scripts/postgres go test -race ./host/records/...

.PHONY: python
python: ## the example plugin in Python: build it, run it through berth and the conformance suite
	scripts/plugin-python

.PHONY: clouds
clouds: ## the long form of the clouds' tests: every fault of every call as a table, 50 races for one session
	BERTH_FAULT_MATRIX=full BERTH_RACE_ROUNDS=50 go test -v -timeout 60m -run 'TestCloud/(Faults|TwoProcesses)' ./plugins/daytona ./plugins/e2b ./plugins/modal ./plugins/runloop

.PHONY: fuzz
fuzz: ## fuzz everything that reads foreign bytes, 20 s each
	scripts/fuzz 20s

.PHONY: generate
generate: ## make the code that is generated again
	$(TOOL) buf generate
	go generate ./plugins/...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
