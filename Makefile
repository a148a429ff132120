# banger: make demo shows it, make test proves it, make help lists the rest.
SHELL := /bin/sh
.SUFFIXES:
.DEFAULT_GOAL := help

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT   := $(shell git rev-parse HEAD 2>/dev/null)
DATE     := $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
STAMP    := -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
BIN      := build/bin
AGENT    := internal/guest/embedded/bin/banger-guest
RUNTIME  := $(CURDIR)/runtime
GO       := CGO_ENABLED=0 go
# What make itself needs a daemon for happens in a state directory of its own.
SCRATCH  := env BANGER_STATE_DIR=$(CURDIR)/build/state BANGER_RUNTIME_DIR=$(RUNTIME)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

demo: deps build runtime ## set up what is missing, then run a command in a fresh Debian VM
	@$(BIN)/banger daemon stop >/dev/null 2>&1 || true # one of an older build, perhaps; VMs run on
	$(BIN)/banger run --rm -- sh -c 'cat /etc/os-release; uname -a'

test: deps build guests check ## set up what is missing, then pass every test, VMs included
	BANGER_RUNTIME_DIR=$(RUNTIME) go test -count=1 -timeout 25m ./...

test-long: deps build guests ## what takes long: 200 crashes of the daemon among random verbs; Docker in a VM; Debian as a container image; a warm Debian at work; warm starts cut short at each step, 200 clones, damage to what is saved of machines; builds that are cut in any phase, or on a full disk; network managers of images
	BANGER_RUNTIME_DIR=$(RUNTIME) go test -count=1 -timeout 60m -v -run 'TestRandomVerbsAndCrashes|TestDocker|TestDebianAsAContainerImage|TestAWarmDebianWorks|TestEveryStepOfAWarmStart|TestClonesAreIndividuals|TestFlippedBits|TestWhatIsSavedStaysWithItsHost|TestSnapshotsTenDeep|TestABaseImageThatIsGone|TestImageCommandsOnAFullDisk|TestImageBuildIsCut|TestImageBuildOnAFullDisk|TestImagesWithNetworkManagers' ./e2e -rounds 200 -long
	@$(MAKE) deb
	go test -count=1 -v -run TestDeb ./packaging

check: ## gofmt, vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt-ed: $$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...

deps: ## install the Debian packages that this machine lacks
	@packages/install.sh

build: ## build the three programs into build/bin
	@mkdir -p $(BIN)
	$(GO) build -trimpath -ldflags '-s -w' -o $(AGENT) ./cmd/banger-guest
	$(GO) build -trimpath -ldflags '$(STAMP) -X main.checkout=$(CURDIR)' -o $(BIN)/bangerd ./cmd/bangerd
	$(GO) build -trimpath -ldflags '$(STAMP)' -o $(BIN)/banger ./cmd/banger

build-faults: ## build the programs that can be told to fail or die at any step, for tests
	@mkdir -p $(BIN)-faults
	$(GO) build -trimpath -tags faults -ldflags '$(STAMP) -X main.checkout=$(CURDIR)' -o $(BIN)-faults/ ./cmd/bangerd ./cmd/banger

runtime: deps build ## build what the runtime bundle in ./runtime lacks
	@$(SCRATCH) $(BIN)/banger runtime build; status=$$?; $(SCRATCH) $(BIN)/banger daemon stop; exit $$status

# Tests and measurements want no program that others release, and so nothing but Debian's mirrors.
guests: deps build ## of that only the kernel and the images
	@$(SCRATCH) $(BIN)/banger runtime build kernel image/tiny image/debian; status=$$?; $(SCRATCH) $(BIN)/banger daemon stop; exit $$status

lab-image: deps build ## build the lab's image, which takes a minute
	go run ./e2e/lab image

# What make install puts where is a tree below build/stage, made anew each time.
PREFIX   ?= /usr/local
STAGE    := build/stage
RELEASE  := $(GO) build -trimpath -buildvcs=false -ldflags '-s -w $(STAMP)'

stage: build
	@rm -rf $(STAGE) && mkdir -p $(STAGE)$(PREFIX)/bin $(STAGE)$(PREFIX)/lib/banger
	$(RELEASE) -o $(STAGE)$(PREFIX)/bin/ ./cmd/banger ./cmd/bangerd
	cp $(AGENT) $(STAGE)$(PREFIX)/bin/
	$(GO) run ./packaging/docs install $(STAGE)$(PREFIX)/share
	$(STAGE)$(PREFIX)/bin/banger system install --root $(STAGE) --prefix $(PREFIX) >/dev/null

install: stage ## install programs, man pages, completions and units; PREFIX=/usr/local DESTDIR=
	cd $(STAGE)$(PREFIX) && find . -type d -exec install -d "$(DESTDIR)$(PREFIX)/{}" \;
	cd $(STAGE)$(PREFIX) && find . -type f -executable -exec install -m 755 {} "$(DESTDIR)$(PREFIX)/{}" \;
	cd $(STAGE)$(PREFIX) && find . -type f ! -executable -exec install -m 644 {} "$(DESTDIR)$(PREFIX)/{}" \;
	@[ ! -e "$(RUNTIME)/bundle.json" ] || DESTDIR="$(DESTDIR)" packaging/install-bundle.sh $(STAGE)$(PREFIX)/bin "$(DESTDIR)$(PREFIX)/lib/banger" "$(RUNTIME)"

uninstall: stage ## remove exactly what install puts there, and the runtime bundle
	cd $(STAGE)$(PREFIX) && find . -type f -exec rm -f "$(DESTDIR)$(PREFIX)/{}" \;
	rm -rf "$(DESTDIR)$(PREFIX)/lib/banger" "$(DESTDIR)$(PREFIX)/lib/banger.previous" "$(DESTDIR)$(PREFIX)/lib/banger."*.next "$(DESTDIR)$(PREFIX)/lib/banger."*.part
	@rmdir "$(DESTDIR)$(PREFIX)/share/doc/banger" 2>/dev/null || true

DEB      := build

deb: ## make build/banger_VERSION_ARCH.deb
	$(MAKE) stage PREFIX=/usr
	packaging/deb/make.sh '$(VERSION)' '$(DATE)' '$(DEB)'

docs: ## make the pages of docs that are made of the commands, the settings and the API
	$(GO) run ./packaging/docs pages docs
	go test -count=1 -run TestOpenAPI ./internal/server -update

lab: deps build ## boot the lab, a VM that is a whole host, to work in
	go run ./e2e/lab up

test-lab: deps build build-faults ## pass the tests that need such a host; ARGS="-keep internal/disk" for some, in a lab that stays; ARGS=-short for what is quick
	go run ./e2e/lab test $(ARGS)

bench: deps build guests ## measure; every figure is a ratio against a bare baseline, also in build/bench.json
	$(GO) run ./e2e/bench -o build/bench.json

bench-long: deps build guests ## the measurements that take long: 200 starts, half of them on a busy host
	$(GO) run ./e2e/bench -long -o build/bench-long.json

clean: ## remove what was built, but not the runtime bundle
	@[ ! -x $(BIN)/banger ] || go run ./e2e/lab down
	rm -rf build $(AGENT)

.PHONY: help demo test test-long check deps build build-faults runtime guests stage install uninstall deb docs lab-image lab test-lab bench bench-long clean
