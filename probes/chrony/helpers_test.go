package chrony

import (
	"context"
	"io/fs"

	"github.com/nodedrift/nodedrift/probes"
	"github.com/nodedrift/nodedrift/probes/host"
	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// unitState is a unit that has long run.
var unitState = unit.State{Run: unit.Run{Unit: host.Unit{ActiveState: "active"}, Since: 1 << 40}, Running: true}

// deaf hears nothing.
type deaf struct{}

func (deaf) Changed()              {}
func (deaf) Saw(probes.Occurrence) {}
func (deaf) Lost(string, uint64)   {}

// emptyTree is a root with nothing in it.
type emptyTree struct{}

func (emptyTree) ReadFile(string) ([]byte, error)                       { return nil, fs.ErrNotExist }
func (emptyTree) ReadDir(string) ([]fs.DirEntry, error)                 { return nil, fs.ErrNotExist }
func (emptyTree) Stat(string) (fs.FileInfo, error)                      { return nil, fs.ErrNotExist }
func (emptyTree) Lstat(string) (fs.FileInfo, error)                     { return nil, fs.ErrNotExist }
func (emptyTree) ReadLink(string) (string, error)                       { return "", fs.ErrNotExist }
func (emptyTree) Watch(context.Context, host.Listener, ...string) error { return nil }
