package host

// Systemd asks the node's systemd.
type Systemd struct{ root *Root }

// NewSystemd returns the systemd of the node whose root is given.
func NewSystemd(root *Root) *Systemd { return &Systemd{root} }

// Close closes the connections.
func (s *Systemd) Close() error { return nil }
