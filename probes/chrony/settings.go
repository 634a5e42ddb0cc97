package chrony

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/nodedrift/nodedrift/probes/internal/unit"
)

// settings are chronyd's arguments and files (chronyd(8), chrony.conf(5)), as far
// as they matter here.
type settings struct {
	files   []string // that are read at the start, in order
	folders []string // in which files may appear
	found   bool     // there is a main file; without one chronyd's own defaults hold

	argsKnown bool
	noClock   bool // -x: the kernel's clock is left alone
	rtcsync   bool
	cmdport   int

	servers []server
	clocks  []clock
}

// A server is one that is declared by server, peer or pool.
type server struct {
	name string
	pool bool
	file string
}

// A clock is a declared reference clock.
type clock struct {
	driver, device string
	id             string // by which chronyd knows it
	file           string
}

// Where distributions have the main file.
var mainFiles = []string{"etc/chrony/chrony.conf", "etc/chrony.conf"}

const (
	commandPort = 323
	maxFiles    = 256
	maxDepth    = 8
)

// arguments reads chronyd's command line. Its options are getopt(3)'s, so that -x
// may hide in -dx; what is left over are directives in place of the main file.
func (s *settings) arguments(args []string) (file string, directives []string) {
	s.argsKnown = len(args) > 0
	for i := 1; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return file, args[i+1:]
		}
		if len(a) < 2 || a[0] != '-' {
			directives = append(directives, a)
			continue
		}
	letters:
		for j := 1; j < len(a); j++ {
			switch a[j] {
			case 'x':
				s.noClock = true
			case 'f', 'F', 'h', 'l', 'L', 'P', 't', 'u':
				value := a[j+1:]
				if value == "" && i+1 < len(args) {
					i++
					value = args[i]
				}
				if a[j] == 'f' {
					file = value
				}
				break letters
			}
		}
	}
	if file != "" {
		directives = nil
	}
	return file, directives
}

// readSettings reads what chronyd runs with. What one line says that is not known
// here is passed over.
func readSettings(root tree, args []string) (settings, error) {
	s := settings{cmdport: commandPort}
	file, directives := s.arguments(args)
	if len(directives) > 0 {
		s.found = true
		return s, s.parse(root, "", []byte(strings.Join(directives, "\n")), 0)
	}
	list := mainFiles
	if name, ok := unit.Path(file); ok {
		list = []string{name}
	}
	s.folders = append(s.folders, list...)
	for _, name := range list {
		err := s.read(root, name, 0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return s, err
		}
		s.found = true
		break
	}
	return s, nil
}

// read reads one file that chronyd reads when it starts.
func (s *settings) read(root tree, name string, depth int) error {
	if depth > maxDepth || len(s.files) >= maxFiles {
		return fmt.Errorf("/%s: too many files in files", name)
	}
	b, err := root.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.files = append(s.files, name) // one that cannot be read is one all the same
	if err != nil {
		return err
	}
	return s.parse(root, name, b, depth)
}

// withoutComments takes comments and white space from a file of chrony's.
func withoutComments(_ string, b []byte) []byte {
	var out []byte
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && !bytes.ContainsRune([]byte("#!;%"), rune(line[0])) {
			out = append(append(out, bytes.Join(bytes.Fields(line), []byte(" "))...), '\n')
		}
	}
	return out
}

func (s *settings) parse(root tree, name string, b []byte, depth int) error {
	for line := range strings.Lines(string(withoutComments(name, b))) {
		words := strings.Fields(line)
		rest := words[1:]
		switch strings.ToLower(words[0]) {
		case "include":
			if len(rest) > 0 {
				if err := s.include(root, rest[0], depth); err != nil {
					return err
				}
			}
		case "confdir":
			list, err := s.inFolders(root, rest, ".conf")
			if err != nil {
				s.files = append(s.files, s.folders[len(s.folders)-1])
				return err
			}
			for _, n := range list {
				if err := s.read(root, n, depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		case "sourcedir":
			if err := s.sourceDir(root, rest); err != nil {
				return err
			}
		default:
			s.directive(name, words)
		}
	}
	return nil
}

// directive takes one line.
func (s *settings) directive(name string, words []string) {
	switch rest := words[1:]; strings.ToLower(words[0]) {
	case "rtcsync":
		s.rtcsync = true
	case "cmdport":
		if len(rest) > 0 {
			if n, err := strconv.ParseUint(rest[0], 10, 16); err == nil {
				s.cmdport = int(n)
			}
		}
	case "server", "peer", "pool":
		if len(rest) > 0 {
			s.servers = append(s.servers, server{rest[0], strings.EqualFold(words[0], "pool"), name})
		}
	case "refclock":
		if len(rest) > 1 {
			s.clocks = append(s.clocks, newClock(rest, len(s.clocks), name))
		}
	}
}

// newClock names a reference clock as chronyd does (refclock.c): by its refid
// option, or by its driver and its number.
func newClock(words []string, number int, file string) clock {
	c := clock{driver: strings.ToUpper(words[0]), file: file}
	c.device, _, _ = strings.Cut(words[1], ":")
	id := []byte(fmt.Sprintf("%-3.3s", c.driver) + strconv.Itoa(number%10))
	if number >= 10 {
		id[2] = '0' + byte(number/10%10)
	}
	c.id = strings.ReplaceAll(string(id), " ", "")
	for i, w := range words[2:] {
		if strings.EqualFold(w, "refid") && i+3 < len(words) {
			c.id = fmt.Sprintf("%.4s", words[i+3])
		}
	}
	return c
}

// include reads the files that a pattern names.
func (s *settings) include(root tree, pattern string, depth int) error {
	name, ok := unit.Path(pattern)
	if !ok {
		return nil
	}
	if !strings.ContainsAny(name, "*?[") {
		if err := s.read(root, name, depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.folders = append(s.folders, name)
		return nil
	}
	folder, base := path.Split(name)
	folder = path.Clean(folder)
	if strings.ContainsAny(folder, "*?[") {
		return fmt.Errorf("include %s: a pattern in a folder's name is not followed", pattern)
	}
	s.folders = append(s.folders, folder)
	entries, err := root.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		s.files = append(s.files, folder)
		return err
	}
	for _, e := range entries {
		if ok, _ := path.Match(base, e.Name()); !ok {
			continue
		}
		if err := s.read(root, path.Join(folder, e.Name()), depth+1); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// inFolders lists the files of some folders, in the order of their names; one in
// an earlier folder hides its namesakes.
func (s *settings) inFolders(root tree, folders []string, suffix string) ([]string, error) {
	byName := map[string]string{}
	var names []string
	for _, f := range folders {
		folder, ok := unit.Path(f)
		if !ok {
			continue
		}
		s.folders = append(s.folders, folder)
		entries, err := root.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, e := range entries {
			n := e.Name()
			if _, hidden := byName[n]; !hidden && strings.HasSuffix(n, suffix) && !e.IsDir() {
				byName[n] = path.Join(folder, n)
				names = append(names, n)
			}
		}
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = byName[n]
	}
	return names, nil
}

// sourceDir reads servers from files that chronyd reads anew when it is told to.
func (s *settings) sourceDir(root tree, folders []string) error {
	list, err := s.inFolders(root, folders, ".sources")
	if err != nil {
		return err
	}
	for _, name := range list {
		b, err := root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		for line := range strings.Lines(string(withoutComments(name, b))) {
			words := strings.Fields(line)
			if w := strings.ToLower(words[0]); w == "server" || w == "peer" || w == "pool" {
				s.directive(name, words)
			}
		}
	}
	return nil
}

// is tells whether a source of chronyd's, by address and by the name it has from
// its files, is the declared one. sure is false when nobody knows the name.
func (d server) is(address, name string) (is, sure bool) {
	if want, err := netip.ParseAddr(d.name); err == nil {
		have, err := netip.ParseAddr(address)
		return err == nil && have.Unmap() == want.Unmap(), true
	}
	return name != "" && strings.EqualFold(d.name, name), name != ""
}
