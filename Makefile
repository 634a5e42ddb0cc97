# Two commands for newcomers: "make run" looks at this machine, "make test" passes the tests.
# The rest is for those who work on nodedrift. Go is all that must be there; deps installs what tests need on Debian.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
REVISION = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
ARCH     = $(shell $(GO) env GOARCH)
# The tags keep html/template out of the binary, 4 MB, and net/http's own HTTP/2, which nothing here speaks, 0.5 MB;
# -l keeps the compiler from copying what libraries call often into where it is called, 1.2 MB. The same source is the same binary.
LEAN     = -tags grpcnotrace,nethttpomithttp2 -gcflags=all=-l -gcflags=github.com/nodedrift/...= -gcflags=runtime/...= -gcflags=internal/...= -gcflags=sync/...= -gcflags=syscall=
BUILD    = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false $(LEAN) -ldflags "-s -w -X main.version=$(VERSION)"
BUILDAH  = buildah --storage-driver vfs
SOURCES  = $(shell find cmd agent probes bpf -name '*.go' -o -name '*.yaml' -o -name '*.tsv' -o -name '*.o' 2>/dev/null) go.mod go.sum

.PHONY: run build modules deps test lint generate image e2e bench vmtest

run: build # look at this node; what it finds is no failure of make
	@bin/nodedrift check -o wide; code=$$?; test $$code -le 2

build: bin/nodedrift

bin/nodedrift: $(SOURCES) | modules
	$(BUILD) -o $@ ./cmd/nodedrift

modules: # the module proxy sometimes answers 503
	@for try in 1 2 3 4 5; do $(GO) mod download && exit 0; sleep $$((try * 3)); done; exit 1

deps:
	@.ci/deps

test: modules deps
	$(GO) vet ./...
	$(GO) test -race ./...

lint: modules
	$(GO) tool staticcheck ./...
	@out=$$(gofmt -l agent cmd probes manifests); test -z "$$out" || { echo "gofmt -w $$out"; exit 1; }

generate: # leaves no difference
	$(GO) generate ./...
	$(GO) fix ./...
	$(GO) mod tidy

image: bin/nodedrift-image.tar

# The image of this machine's kind is bin/nodedrift-image.tar, the other kind's stands beside it. The Dockerfile's build
# stage, which any builder with a registry runs by itself, is replaced by the folder of the binary built here.
bin/nodedrift-image.tar: Dockerfile bin/nodedrift
	for arch in amd64 arm64; do \
	  mkdir -p bin/stage-$$arch && GOARCH=$$arch $(BUILD) -o bin/stage-$$arch/nodedrift ./cmd/nodedrift && \
	  $(BUILDAH) build -q --isolation chroot --platform linux/$$arch --timestamp 0 --build-context build=bin/stage-$$arch \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) -t localhost/nodedrift:dev . && \
	  rm -f bin/nodedrift-image-$$arch.tar && \
	  $(BUILDAH) push -q localhost/nodedrift:dev docker-archive:bin/nodedrift-image-$$arch.tar:localhost/nodedrift:dev && \
	  $(BUILDAH) rmi localhost/nodedrift:dev >/dev/null || exit 1; \
	done
	mv bin/nodedrift-image-$(ARCH).tar $@

e2e: image # on a lab of real Kubernetes nodes; needs root
	$(GO) run ./cmd/nodelab deps
	$(GO) run ./cmd/nodelab build
	NODEDRIFT_E2E=1 $(GO) test -count=1 -timeout 45m -parallel 20 -v $(if $(TESTS),-run '$(TESTS)') ./cmd/internal/e2e

bench: modules image # ratios against naive twins, and the agent's own footprint in the lab
	$(GO) test -run '^$$' -bench . -benchmem ./agent/... ./probes/... ./bpf
	$(GO) test -run '^$$' -bench EventToFinding -benchtime 1000x ./cmd/nodedrift
	$(GO) test -count=1 -v -run RequestsInSteadyState ./probes/konnectivity
	NODEDRIFT_E2E=1 NODEDRIFT_FOOTPRINT=1 $(GO) test -count=1 -timeout 30m -v -run 'TestFootprint' ./cmd/internal/e2e

KERNELS ?= 5.10 6.1 6.12 6.12+lockdown=confidentiality newest
vmtest: modules # the BPF programs, a clock that is set, and the lock, on Debian's kernels, under qemu; needs apt, qemu-system-x86 and cpio
	CGO_ENABLED=0 $(GO) build -o bin/vmtest ./bpf/vmtest
	@rm -f bin/vmtest.tsv; for k in $(KERNELS); do \
	  on() { CGO_ENABLED=0 $(GO) test -count=1 $(if $(V),-v) -exec "$(CURDIR)/bin/vmtest -kernel $$k -results $(CURDIR)/bin/vmtest.tsv" "$$@"; }; \
	  on ./bpf && on -run TestReal ./probes/chrony && on -run 'LockedIn|RealClock' ./cmd/nodedrift || exit 1; \
	done
	@bin/vmtest -table bin/vmtest.tsv
