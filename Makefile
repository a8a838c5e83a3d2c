# berth: `make` lists the targets.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PLUGINS := $(notdir $(patsubst %/main.go,%,$(wildcard plugins/*/main.go)))
TOOL    := go tool -modfile=tools/go.mod
BENCH   ?= .
RACES   ?= 50
FOR     ?= 20s

LDFLAGS = -s -w -X github.com/berth-dev/berth/host/cli.Version=$(VERSION)
# The host begins a little before Go's runtime does, on systems that host/stdio knows.
ENTRY   = $(if $(filter linux/amd64 linux/arm64,$(shell go env GOOS)/$(shell go env GOARCH)),-E berth_entry)

# Static executables without debug information, all in one go invocation: what they share is compiled once. go names them
# after their folders; the links are what users run.
COMPILE = CGO_ENABLED=0 go build -trimpath -gcflags=all=-dwarf=false \
	-ldflags '$(LDFLAGS)' -ldflags 'github.com/berth-dev/berth/host=$(LDFLAGS) $(ENTRY)'
BUILD   = $(COMPILE) -o bin/build/ ./host ./examples/action-server
LINK    = mkdir -p bin/plugins && ln -f bin/build/host bin/berth && ln -f bin/build/action-server bin/berth-action-server && \
	for p in $(1); do ln -f bin/build/$$p bin/plugins/berth-provider-$$p || exit 1; done

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the host, the plugins and the action server into bin/
	$(BUILD) $(PLUGINS:%=./plugins/%)
	@$(call LINK,$(PLUGINS))

.PHONY: run
run: ## the main job, end to end, on this machine: connect, act, disconnect
	$(BUILD) ./plugins/local ./examples/quickstart
	@$(call LINK,local)
	bin/build/quickstart

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
	$(foreach p,daytona e2b modal runloop,$(COMPILE) -o bin/sim/$(p) ./plugins/$(p)/sim/cmd &&) true
	$(COMPILE) -o bin/berth-chaos ./internal/chaos
	scripts/postgres bin/berth-chaos $(ARGS)

.PHONY: bench
bench: ## figures against the budgets: BENCH=Launch, ARGS=--short
	go test -run '^$$' -bench '$(BENCH)' -benchtime 1x -timeout 20m ./internal/bench $(ARGS)

.PHONY: contract
contract: ## hold the simulated clouds to the providers' own SDKs (npm, PyPI)
	scripts/contract/all

.PHONY: test-postgres
test-postgres: ## the records' tests on a PostgreSQL server, which is installed and started for them
	scripts/postgres go test -race ./host/records/...

.PHONY: upgrade
upgrade: ## hosts of the version before and of this one on the same records, SQLite and PostgreSQL
	scripts/upgrade

.PHONY: python
python: ## the example plugin in Python: build it, run it through berth and the conformance suite
	scripts/plugin-python

.PHONY: clouds
clouds: ## the long form of the clouds' tests: every fault of every call as a table, 50 races for one session: RACES=5
	BERTH_FAULT_MATRIX=full BERTH_RACE_ROUNDS=$(RACES) go test -v -timeout 60m -run 'TestCloud/(Faults|TwoProcesses)' ./plugins/daytona ./plugins/e2b ./plugins/modal ./plugins/runloop

.PHONY: fuzz
fuzz: ## fuzz everything that reads foreign bytes, each for a while: FOR=20s
	scripts/fuzz $(FOR)

.PHONY: mutants
mutants: ## change the lifecycle, leases and records one place at a time, and see that a test notices: ARGS=--short
	scripts/postgres go run ./internal/mutants $(ARGS)

.PHONY: generate
generate: ## make the code that is generated again
	$(TOOL) buf generate
	go generate ./plugins/...

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
