// Package bpf tells who did what on a node, and what happened there that leaves
// no state to look at.
//
// It adds identity, never a verdict: where BPF is missing, conditions and reasons
// are the same and only the actor is not known. A [Tracer] loads one small
// program per detector, tries each on itself, and keeps what it hears in a
// bounded journal. Nothing is pinned: programs end with the process.
//
// C programs, the objects made of them and typed readers lie side by side; the
// programs are GPL-2.0 or BSD-2-Clause, as the kernel's helpers ask for.
package bpf
