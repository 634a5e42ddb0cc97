package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// What the start took is given back, and what is needed again comes back by itself.
func TestGiveBack(t *testing.T) {
	file := func() int {
		b, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if size, ok := strings.CutPrefix(line, "RssFile:"); ok {
				n, err := strconv.Atoi(strings.Fields(size)[0])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Skip("this kernel does not tell RssFile")
		return 0
	}
	before := file()
	giveBack()
	if after := file(); after > before-1024 {
		t.Errorf("%d KiB of files were mapped before, %d after", before, after)
	}
}
