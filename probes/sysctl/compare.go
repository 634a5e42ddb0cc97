package sysctl

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// same says whether a live value is what a declared one makes of a key. The
// kernel reads fields between blanks, takes 0x10 and 010 for numbers, ignores
// fields that it has no number for (a trailing comment, say), and leaves the
// numbers that were not given (kernel.printk = 4). Tried on Linux 6.18.
func same(live, want string) bool {
	l, w := strings.Fields(live), strings.Fields(want)
	if numbers(l) && len(w) > 0 {
		n := min(len(l), len(w))
		l, w = l[:n], w[:n]
	}
	return slices.EqualFunc(l, w, sameField)
}

func sameField(live, want string) bool {
	if live == want {
		return true
	}
	l, errL := strconv.ParseInt(live, 10, 64)
	w, errW := strconv.ParseInt(want, 0, 64)
	return errL == nil && errW == nil && l == w && !strings.ContainsAny(want, "_+oObB")
}

func numbers(fields []string) bool {
	for _, f := range fields {
		if _, err := strconv.ParseInt(f, 10, 64); err != nil {
			return false
		}
	}
	return len(fields) > 0
}

// portLists hold sets of ports, which the kernel prints sorted and joined:
// 1,2,3 reads back as 1-3.
var portLists = map[string]bool{"net/ipv4/ip_local_reserved_ports": true}

// sameFor is [same] with what is special about a key.
func sameFor(key, live, want string) bool {
	if portLists[key] {
		l, okL := ports(live)
		w, okW := ports(want)
		if okL && okW {
			return slices.Equal(l, w)
		}
	}
	return same(live, want)
}

type portRange struct{ first, last uint64 }

// ports reads "22,8000-8080" into sorted ranges that neither touch nor overlap.
func ports(list string) ([]portRange, bool) {
	var ranges []portRange
	for part := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }) {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		f, errF := strconv.ParseUint(first, 10, 16)
		l, errL := strconv.ParseUint(last, 10, 16)
		if errF != nil || errL != nil || f > l {
			return nil, false
		}
		ranges = append(ranges, portRange{f, l})
	}
	slices.SortFunc(ranges, func(a, b portRange) int { return cmp.Compare(a.first, b.first) })
	var joined []portRange
	for _, r := range ranges {
		if n := len(joined); n > 0 && r.first <= joined[n-1].last+1 {
			joined[n-1].last = max(joined[n-1].last, r.last)
			continue
		}
		joined = append(joined, r)
	}
	return joined, true
}

// printed is a value on one line: fields apart by one blank, never long.
func printed(value string) string {
	const most = 64
	s := strings.Join(strings.Fields(value), " ")
	if s == "" {
		return "empty"
	}
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
