# chainmail: `make help` lists the targets.

VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME  ?= 30s
BENCHARGS ?=
CLUSTERARGS ?= $(filter -quick,$(BENCHARGS))
DATA      ?= ./data
NODES     ?= 3

GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# The C compiler is for zstd; netgo and osusergo keep the C library's resolver
# out, so that the binary can be static.
export CGO_ENABLED = 1

.DEFAULT_GOAL := help
.PHONY: help build deb rpm run setup test package-test lint fuzz bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/chainmail, one static binary
	@packaging/setup.sh build
	go build -trimpath -tags netgo,osusergo \
		-ldflags '-s -w -linkmode external -extldflags "-static" -X main.version=$(VERSION)' \
		-o bin/chainmail ./cmd/chainmail

deb: build ## build bin/chainmail_VERSION_ARCH.deb (PACKAGE_VERSION; see docs/packages.md)
	@packaging/build.sh deb $(VERSION)

rpm: build ## build bin/chainmail-VERSION.ARCH.rpm
	@packaging/build.sh rpm $(VERSION)

run: build ## build, then run a cluster of 3 nodes (NODES) in ./data (DATA), with a balancer in front where nginx is
	@[ "$$(id -u)" != 0 ] || packaging/setup.sh balancer
	@exec bin/chainmail testcluster run --nodes $(NODES) --dir $(DATA) --lb=auto

setup: ## install the Debian packages that building and testing need (as root; else name them)
	@packaging/setup.sh test

test: setup ## set up, then vet and run every test with the race detector
	go vet ./...
	TEST_REQUIRE_CORPORA=1 go test -race -timeout 30m ./...

package-test: build ## install, start, upgrade and purge the .deb on hosts with systemd, as root (containers; see docs/packages.md)
	@packaging/setup.sh package
	@packaging/package-test.sh $(VERSION)

lint: ## check go.mod, style and formatting (gofumpt, staticcheck and others, see .golangci.yml)
	go mod tidy -diff
	go run $(GOLANGCI) run ./...

fuzz: ## run each fuzz target for FUZZTIME (default 30s)
	@for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "== $$pkg $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done; \
	done

bench: build ## compare a node with Postfix and a plain go-smtp server (BENCHARGS for its flags), and clusters with a node (CLUSTERARGS)
	go run ./testcluster/peerbench $(BENCHARGS)
	go run ./testcluster/clusterbench $(CLUSTERARGS)

clean: ## remove what make build and the tests made; ./data stays
	rm -rf bin
	go clean -testcache -fuzzcache

-include packaging/vagrant/targets.mk
