package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"text/tabwriter"
)

// A verdict is what a test says of a detector on its kernel.
type verdict struct{ detector, active, why string }

// verdictLine is how TestDetectorsOfThisKernel says it.
var verdictLine = regexp.MustCompile(`detector (\w+) +active (true|false) ?(.*)`)

func verdictOf(line string) (verdict, bool) {
	m := verdictLine.FindStringSubmatch(line)
	if m == nil {
		return verdict{}, false
	}
	return verdict{m[1], m[2], m[3]}, true
}

// record appends verdicts to a file of tab-separated values.
func record(name, kernel string, all []verdict) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w := csv.NewWriter(f)
	w.Comma = '\t'
	for _, v := range all {
		w.Write([]string{kernel, v.detector, v.active, v.why})
	}
	w.Flush()
	return w.Error()
}

// showTable prints what a file of verdicts says: a row for each detector, a column for
// each kernel, and below it why a detector is not active.
func showTable(out io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r := csv.NewReader(f)
	r.Comma, r.FieldsPerRecord = '\t', 4
	rows, err := r.ReadAll()
	if err != nil {
		return err
	}
	var kernels, detectors, notes []string
	said := map[[2]string]string{}
	for _, row := range rows {
		kernel, detector, word := row[0], row[1], "yes"
		if row[2] != "true" {
			word = "no"
			notes = append(notes, fmt.Sprintf("%s, %s: %s", kernel, detector, row[3]))
		}
		if !slices.Contains(kernels, kernel) {
			kernels = append(kernels, kernel)
		}
		if !slices.Contains(detectors, detector) {
			detectors = append(detectors, detector)
		}
		said[[2]string{kernel, detector}] = word
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "detector")
	for _, k := range kernels {
		fmt.Fprint(w, "\t", k)
	}
	for _, d := range detectors {
		fmt.Fprint(w, "\n", d)
		for _, k := range kernels {
			fmt.Fprint(w, "\t", said[[2]string{k, d}])
		}
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	for _, n := range notes {
		fmt.Fprintln(out, n)
	}
	return nil
}
