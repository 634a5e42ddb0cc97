package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Images that every node has, made from the toolbox program alone: nothing is pulled from anywhere.
const (
	PauseImage   = "localhost/pause:1"
	ToolboxImage = "localhost/toolbox:1"
)

func (d Dirs) pauseTar() string { return filepath.Join(d.Base, "cache", "pause.tar") }

// ToolboxTar is the archive of ToolboxImage; every node imports it as it boots.
func (d Dirs) ToolboxTar() string { return filepath.Join(d.Base, "cache", "toolbox.tar") }

func buildImages(ctx context.Context, d Dirs, log logf) error {
	src, err := d.source(ctx)
	if err != nil {
		return err
	}
	bin := filepath.Join(d.Base, "cache", "toolbox")
	log("building the toolbox")
	if err := goTool(ctx, src, "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./cmd/internal/lab/toolbox"); err != nil {
		return fmt.Errorf("build the toolbox: %w", err)
	}
	// Pause has one thing to do, and the toolbox can do it.
	if err := writeImage(d.pauseTar(), PauseImage, bin, "sleep"); err != nil {
		return err
	}
	return writeImage(d.ToolboxTar(), ToolboxImage, bin)
}

// TestImage makes an image FROM scratch that holds nothing but one static program, its entrypoint, and returns the path of
// the archive, in the format of docker save, beside the program. Name is a full reference: localhost/thing:1.
func TestImage(ctx context.Context, name, program string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := imageRef(name); err != nil {
		return "", err
	}
	return program + ".tar", writeImage(program+".tar", name, program)
}

// writeImage writes a docker-archive: a manifest, a config and one layer, by the docker image specification v1.2.
func writeImage(path, name, program string, args ...string) error {
	content, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read the program of image %s: %w", name, err)
	}
	entry := "/" + filepath.Base(program)
	var layer bytes.Buffer
	if err := writeTar(&layer, 0o755, map[string][]byte{entry[1:]: content}, entry[1:]); err != nil {
		return fmt.Errorf("make the layer of image %s: %w", name, err)
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": append([]string{entry}, args...), "Env": []string{"PATH=/"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	if err != nil {
		return fmt.Errorf("make the config of image %s: %w", name, err)
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("make the manifest of image %s: %w", name, err)
	}
	var archive bytes.Buffer
	files := map[string][]byte{configName: config, "layer.tar": layer.Bytes(), "manifest.json": manifest}
	if err := writeTar(&archive, 0o644, files, configName, "layer.tar", "manifest.json"); err != nil {
		return fmt.Errorf("make image %s: %w", name, err)
	}
	return replaceFile(path, archive.Bytes(), 0o644)
}

// writeTar leaves times at zero: the same program is the same image.
func writeTar(w io.Writer, mode int64, files map[string][]byte, order ...string) error {
	t := tar.NewWriter(w)
	for _, name := range order {
		if err := t.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(files[name])), Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		if _, err := t.Write(files[name]); err != nil {
			return err
		}
	}
	return t.Close()
}

// replaceFile puts a file in place at once, so that no reader sees half of it.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	half := path + ".half"
	if err := os.WriteFile(half, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(half, path); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// imageRef refuses what containerd would import under another name: without a host it means a public registry.
func imageRef(name string) error {
	host, _, ok := strings.Cut(name, "/")
	if !ok || host != "localhost" && !strings.ContainsAny(host, ".:") {
		return fmt.Errorf("image name %q must begin with a host, such as localhost/", name)
	}
	return nil
}
