# Any builder makes the image from this file alone: docker build . , podman build . , buildah build .
# For another architecture: --platform linux/arm64 (buildah 1.28 wants --build-arg BUILDPLATFORM=linux/amd64 as well).
# "make image" compiles on this machine and puts its folder in place of the stage named build, so no base image is pulled.

FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETARCH
ARG VERSION=dev
# The tags keep html/template out, 4 MB, and net/http's own HTTP/2, which nothing here speaks. The same source is the same binary.
RUN CGO_ENABLED=0 GOOS=linux GOARCH=$TARGETARCH go build -trimpath -buildvcs=false -tags grpcnotrace,nethttpomithttp2 \
    -ldflags "-s -w -X main.version=$VERSION" -o /nodedrift ./cmd/nodedrift

# The binary is all there is: no shell, no libc, no package to patch. The API server's CA comes with the token.
FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nodedrift" \
      org.opencontainers.image.description="Says where a Kubernetes node has drifted from what it is declared to be" \
      org.opencontainers.image.source="https://github.com/nodedrift/nodedrift" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /nodedrift /nodedrift
ENTRYPOINT ["/nodedrift"]
CMD ["run"]
