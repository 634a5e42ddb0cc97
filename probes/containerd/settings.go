package containerd

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nodedrift/nodedrift/probes/host"
)

// settings are what a running containerd says it runs with.
type settings struct {
	known    bool
	other    string         // the runtime's name, when it is not containerd
	config   map[string]any // as JSON names it; without registries, which hold secrets
	cni      cniSettings
	loopback bool // its own network of a pod's lo uses the loopback plugin
}

// cniSettings are where CNI's files are (pkg/cri/config/config.go, CniConfig).
type cniSettings struct {
	BinDir     string   `json:"binDir"`
	BinDirs    []string `json:"binDirs"` // from containerd 2.1 on, in place of BinDir
	ConfDir    string   `json:"confDir"`
	MaxConfNum *int     `json:"maxConfNum"` // how many configurations count; 0 is all
}

// learnSettings asks for the settings of this run, once.
func (p *Probe) learnSettings(ctx context.Context) {
	if p.running.known && p.run != "" || !p.asked.IsZero() && time.Since(p.asked) < configEach {
		return
	}
	p.asked = time.Now()
	status, err := timed(ctx, new(time.Duration), versionWithin, func(ctx context.Context) (host.RuntimeStatus, error) { return p.cri.Status(ctx, true) })
	if err != nil {
		return
	}
	p.learn(status.Info)
	if v, err := p.cri.Version(ctx); err == nil && v.Name != "containerd" {
		p.running.other = v.Name
	}
}

// learn reads the settings in a verbose status.
func (p *Probe) learn(info map[string]string) {
	s, ok := parseSettings(info)
	if !ok {
		return
	}
	if !p.running.known {
		p.cniAt = time.Time{} // CNI's files may be elsewhere
	}
	p.running = s
}

// parseSettings reads what containerd adds to its status when it is asked to be verbose.
func parseSettings(info map[string]string) (s settings, ok bool) {
	if json.Unmarshal([]byte(info["config"]), &s.config) != nil || len(s.config) == 0 {
		return settings{}, false
	}
	delete(s.config, "registry")
	var own struct {
		CNI cniSettings `json:"cni"`
	}
	if json.Unmarshal([]byte(info["config"]), &own) == nil {
		s.cni = own.CNI
	}
	var loaded struct {
		Networks []struct {
			Config struct {
				Plugins []struct{ Network struct{ Type string } }
			}
		}
	}
	if json.Unmarshal([]byte(info["cniconfig"]), &loaded) == nil {
		for _, n := range loaded.Networks {
			for _, plugin := range n.Config.Plugins {
				s.loopback = s.loopback || plugin.Network.Type == "loopback"
			}
		}
	}
	s.known = true
	return s, true
}
