package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nodedrift/nodedrift/agent"
)

// maxDocument bounds what status reads.
const maxDocument = 8 << 20

// status prints what the agent that runs on this node knows.
func status(ctx context.Context, c *cli, args []string) (int, error) {
	set, _, _ := c.flags("status")
	format := set.String("o", "table", "output: "+strings.Join(formats, ", "))
	addr := set.String("agent", "127.0.0.1:20258", "address of the agent")
	rest, err := parse(set, args)
	if err != nil {
		return 0, err
	}
	if err := noArguments(rest); err != nil {
		return 0, err
	}
	if !slices.Contains(formats, *format) {
		return 0, usagef("-o is %q, want one of %s", *format, strings.Join(formats, ", "))
	}
	d := &agent.Document{}
	if err := ask(ctx, "http://"+*addr+"/api/v1/status", d); err != nil {
		fmt.Fprintf(c.err, "nodedrift status: %v\nno agent answers here; nodedrift check looks without one\n", err)
		return exitUnknown, nil
	}
	if err := c.print(d, *format); err != nil {
		return 0, err
	}
	return exitCode(d), nil
}

// ask reads the document that the agent serves at a URL.
func ask(ctx context.Context, url string, d any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s: %s", url, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(d); err != nil {
		return fmt.Errorf("parse what %s answered: %w", url, err)
	}
	return nil
}
