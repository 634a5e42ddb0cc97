package kube

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodedrift/nodedrift/agent"
	"github.com/nodedrift/nodedrift/probes"
)

// inBubble runs a test in a synctest bubble, in parallel with others.
func inBubble(t *testing.T, change func(*Config), test func(*testing.T, *world)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(t, change)) })
}

// sleep lets time pass in the bubble and everything settle.
func sleep(d time.Duration) { time.Sleep(d); synctest.Wait() }

func TestSteadyStateIsQuiet(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		start := time.Now()
		for range 24 * 60 { // every minute the looks succeed and the agent says so
			time.Sleep(time.Minute)
			w.change(good("SysctlDrift"))
			w.change(good("KubeletDrift"))
		}
		synctest.Wait()
		if n := w.api.count("", start); n > 40 || n < 30 {
			t.Errorf("%d requests in 24 h, want 30 to 40", n)
		}
		if age := time.Since(w.api.condition("SysctlDrift").LastHeartbeatTime); age > 49*time.Minute {
			t.Errorf("the heartbeat is %s old", age)
		}
		for i, r := range w.api.log[3:] {
			gap := r.at.Sub(w.api.log[i+2].at)
			if gap < 32*time.Minute || gap > 48*time.Minute {
				t.Errorf("heartbeat after %s, want 40 min +-20 %%", gap)
			}
		}
		w.stop()
	})
}

func TestReadsBeforeItWrites(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.change(bad("SysctlDrift", "vm.swappiness", probes.Warning), raised("SysctlDrift", "Changed"))
		w.run(t)
		sleep(20 * time.Second)
		w.stop()
		var got []string
		for _, r := range w.api.log {
			got = append(got, r.method+" "+r.path)
		}
		want := []string{"GET /api/v1/nodes/node0", "PATCH /api/v1/nodes/node0/status", "POST /api/v1/namespaces/default/events"}
		if slices.Sort(got[1:]); !slices.Equal(got, want) {
			t.Errorf("requests %v, want %v", got, want)
		}
		if q := w.api.log[0].query; !strings.Contains(q, "resourceVersion=0") {
			t.Errorf("the first read may come from the cache; query %q", q)
		}
		for _, r := range w.api.log {
			if r.method == "PATCH" && (!strings.Contains(r.query, "fieldManager=nodedrift") || !strings.Contains(r.query, "force=true") || !strings.Contains(r.accept, "PartialObjectMetadata")) {
				t.Errorf("apply with query %q, accept %q", r.query, r.accept)
			}
		}
		if len(w.ready) != 1 || w.ready[0].UID != "uid-1" || w.ready[0].BootID != "boot-1" || w.ready[0].Labels["agentpool"] != "np1" || w.ready[0].ReadySince.IsZero() {
			t.Errorf("readiness %+v", w.ready)
		}
	})
}

func TestTellsAtOnce(t *testing.T) {
	tests := map[string]struct {
		change func(c *agent.Condition)
		within time.Duration
		not    time.Duration // nothing before it
	}{
		"status":   {func(c *agent.Condition) { *c = good("SysctlDrift") }, time.Millisecond, 0},
		"reason":   {func(c *agent.Condition) { c.Reason = "Other" }, time.Millisecond, 0},
		"severity": {func(c *agent.Condition) { c.Findings[0].Severity = probes.Critical }, time.Millisecond, 0},
		"subject":  {func(c *agent.Condition) { c.Findings[0].Subject = "b" }, time.Millisecond, 0},
		"actor":    {func(c *agent.Condition) { c.Findings[0].Actor = &agent.Actor{Pod: "ci/runner"} }, time.Millisecond, 0},
		"message":  {func(c *agent.Condition) { c.Message = "other words" }, messageEvery + time.Millisecond, messageEvery - time.Millisecond},
		"held":     {func(c *agent.Condition) { c.Findings = append(c.Findings, agent.Finding{Reason: "X", Held: true}) }, 0, 31 * time.Minute},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.put(bad("SysctlDrift", "a", probes.Warning))
				w.run(t)
				sleep(time.Minute)
				from := time.Now()
				c := bad("SysctlDrift", "a", probes.Warning)
				test.change(&c)
				w.change(c)
				sleep(test.not)
				if n := w.api.count("PATCH", from); test.not > 0 && n > 0 {
					t.Errorf("applied within %s", test.not)
				}
				sleep(test.within - test.not)
				if n := w.api.count("PATCH", from); test.within > 0 && n != 1 {
					t.Errorf("%d applies within %s, want 1", n, test.within)
				}
				w.stop()
			})
		})
	}
}

func TestFlappingIsBounded(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		from := time.Now()
		for i := range 600 {
			if i%2 == 0 {
				w.change(bad("SysctlDrift", "a", probes.Critical), raised("SysctlDrift", "Changed"))
			} else {
				w.change(good("SysctlDrift"))
			}
			time.Sleep(time.Second)
		}
		sleep(time.Minute)
		if n := w.api.count("PATCH", from); n > 63+6 {
			t.Errorf("%d applies in 11 min, want one per 10 s and a burst of 3", n)
		}
		if got := w.api.condition("SysctlDrift"); got.Status != agent.False {
			t.Errorf("the last state is %+v", got)
		}
		if n := len(w.api.sent()); n > perReasonBurst+3 {
			t.Errorf("%d Events, want a burst of %d and one per 5 min", n, perReasonBurst)
		}
		sleep(5 * time.Minute)
		if e := w.api.sent(); !strings.Contains(e[len(e)-1].Message, " more in ") {
			t.Errorf("what was folded was not told: %q", e[len(e)-1].Message)
		}
		w.stop()
	})
}

func TestRestartChangesNothing(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.put(bad("SysctlDrift", "a", probes.Critical))
		w.run(t)
		sleep(time.Minute)
		w.stop()
		before, from := w.api.condition("SysctlDrift"), time.Now()

		again := newWorld(t, nil)
		again.api = w.api
		again.pub.api.http.Transport = w.api
		again.list = []agent.Condition{{Type: "SysctlDrift"}, {Type: "KubeletDrift"}} // before the first look
		again.run(t)
		sleep(5 * time.Second)
		again.change(bad("SysctlDrift", "a", probes.Critical), raised("SysctlDrift", "Changed"))
		again.change(good("KubeletDrift"))
		sleep(10 * time.Minute)
		if after := again.api.condition("SysctlDrift"); after != before {
			t.Errorf("condition was %+v, is %+v", before, after)
		}
		if n := again.api.count("PATCH", from); n != 0 {
			t.Errorf("%d applies after a restart that changed nothing", n)
		}
		slices.Sort(again.adopted)
		if want := []string{"KubeletDrift False AsDeclared", "SysctlDrift True Changed"}; !slices.Equal(again.adopted, want) {
			t.Errorf("adopted %v", again.adopted)
		}
		again.stop()
	})
}

// TestUndecidedStays holds that a condition that is not decided for a moment, as
// between a node's set-up and the first look, stays what the Node shows.
func TestUndecidedStays(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		setUp := agent.Condition{Type: "SysctlDrift", Status: agent.Unknown, Reason: agent.NodeProvisioning}
		w.put(setUp)
		w.run(t)
		sleep(time.Minute)
		w.change(agent.Condition{Type: "SysctlDrift", Reason: agent.NotCheckedYet})
		w.change(bad("KubeletDrift", "a", probes.Critical))
		sleep(time.Second)
		if c := w.api.condition("SysctlDrift"); c.Status != agent.Unknown || c.Reason != agent.NodeProvisioning {
			t.Errorf("before the first look the Node shows %+v", c)
		}
		if c := w.api.condition("KubeletDrift"); c.Status != agent.True {
			t.Errorf("the other one waits: %+v", c)
		}
		w.change(good("SysctlDrift"))
		sleep(time.Second)
		if c := w.api.condition("SysctlDrift"); c.Status != agent.False {
			t.Errorf("after it %+v", c)
		}
		w.truth.mu.Lock()
		w.list = w.list[1:]
		w.truth.mu.Unlock()
		w.pub.Publish(nil)
		sleep(10 * time.Second)
		if c := w.api.condition("SysctlDrift"); c.Status != "" {
			t.Errorf("withdrawn, and still there: %+v", c)
		}
		w.stop()
	})
}

func TestRestartSendsNoSecondEvent(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.api.conditions = []condition{{Type: "SysctlDrift", Status: agent.True, Reason: "Changed", LastHeartbeatTime: time.Now(), LastTransitionTime: time.Now()}}
		w.pub.Publish([]agent.Happening{raised("SysctlDrift", "Changed"), raised("SysctlDrift", "New")})
		w.run(t)
		sleep(time.Minute)
		w.stop()
		if e := w.api.sent(); len(e) != 1 || e[0].Reason != "New" {
			t.Errorf("Events %+v", e)
		}
	})
}

func TestAnotherBootIsVoid(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		old := time.Now().Add(-2 * time.Hour)
		w.api.conditions = []condition{{Type: "SysctlDrift", Status: agent.True, Reason: "Changed", LastHeartbeatTime: old, LastTransitionTime: old}}
		w.pub.Publish([]agent.Happening{raised("SysctlDrift", "Changed")})
		w.run(t)
		sleep(time.Minute)
		w.stop()
		if len(w.adopted) != 0 {
			t.Errorf("adopted %v", w.adopted)
		}
		if e := w.api.sent(); len(e) != 1 {
			t.Errorf("%d Events, want 1", len(e))
		}
		if c := w.api.condition("SysctlDrift"); c.Status != agent.False {
			t.Errorf("condition %+v", c)
		}
	})
}

// What has not been decided keeps the server's word; what is no longer ours goes.
func TestUndecidedStaysRetiredGoes(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		now := time.Now().UTC().Truncate(time.Second)
		kept := condition{Type: "KubeletDrift", Status: agent.True, Reason: "Stopped", Message: "m", LastHeartbeatTime: now, LastTransitionTime: now}
		w.api.conditions = []condition{{Type: "Old", Status: agent.True, LastHeartbeatTime: now, LastTransitionTime: now}, kept}
		w.list[1] = agent.Condition{Type: "KubeletDrift"}
		w.run(t)
		sleep(time.Minute)
		w.stop()
		if c := w.api.condition("KubeletDrift"); c != kept {
			t.Errorf("undecided condition was %+v, is %+v", kept, c)
		}
		if c := w.api.condition("Old"); c.Type != "" {
			t.Errorf("retired condition is still there: %+v", c)
		}
		if c := w.api.condition("SysctlDrift"); c.Status != agent.False {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestOutage(t *testing.T) {
	for range 20 { // jitter differs each time
		t.Run("", func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.run(t)
				sleep(time.Minute)
				from := time.Now()
				w.api.set(func() { w.api.fail = refuse })
				for i := range 600 { // everything changes all the time
					c := good("SysctlDrift")
					if i%2 == 0 {
						c = bad("SysctlDrift", "a", probes.Critical)
					}
					w.change(c, raised("SysctlDrift", "Changed"))
					time.Sleep(time.Second)
				}
				w.change(bad("SysctlDrift", "z", probes.Critical))
				synctest.Wait()
				if n := w.api.count("", from); n > 20 || n < 10 {
					t.Errorf("%d requests in 10 min, want 10 to 20", n)
				}
				if !w.pub.Pending() || w.pub.Requests()["error"] != uint64(w.api.count("", from)) {
					t.Errorf("pending %v, requests %v", w.pub.Pending(), w.pub.Requests())
				}
				w.api.set(func() { w.api.fail = nil })
				sleep(time.Minute)
				if c := w.api.condition("SysctlDrift"); c.Status != agent.True || c.Message != "z changed" {
					t.Errorf("a minute after the return: %+v", c)
				}
				e := w.api.sent()
				if len(e) == 0 || len(e) > maxQueue || !strings.Contains(e[0].Message, "(seen 2000-01-01T00:01:") {
					t.Errorf("Events after the return: %+v", e)
				}
				if n := strings.Count(w.logs.String(), "\n"); n != 2 {
					t.Errorf("%d lines of log, want one for each transition:\n%s", n, w.logs)
				}
				w.stop()
			})
		})
	}
}

func TestHangingServer(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		var flying, most int
		w.api.fail = nil
		hang := hanging(func(d int) { flying += d; most = max(most, flying) })
		w.pub.api.http.Transport = hang
		w.run(t)
		sleep(10 * time.Minute)
		if most != 1 {
			t.Errorf("%d requests at a time", most)
		}
		if n := w.pub.Requests()["error"]; n > 20 || n == 0 {
			t.Errorf("%d requests in 10 min", n)
		}
		if err := w.pub.Alive(); err != nil {
			t.Error(err)
		}
		w.stop()
	})
}

// hanging never answers, as long as the caller waits.
type hanging func(int)

func (h hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	h(+1)
	defer h(-1)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestRetryAfterIsHonoured(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.api.fail = func(*http.Request) (*http.Response, error) {
			r := answer(429, status("too many requests"))
			r.Header.Set("Retry-After", "30")
			return r, nil
		}
		w.run(t)
		sleep(10 * time.Minute)
		w.stop()
		for i := 1; i < len(w.api.log); i++ {
			if gap := w.api.log[i].at.Sub(w.api.log[i-1].at); gap < 30*time.Second || gap > 61*time.Second {
				t.Errorf("tried again after %s", gap)
			}
		}
		if n := w.pub.Requests()["429"]; n > 20 || n < 10 {
			t.Errorf("%d requests", n)
		}
	})
}

// A lost reply makes no second Event.
func TestLostReply(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		lost := false
		w.api.lose = func(r *http.Request) bool {
			if r.Method != "POST" || lost {
				return false
			}
			lost = true
			return true
		}
		w.pub.Publish([]agent.Happening{raised("SysctlDrift", "Changed")})
		sleep(time.Minute)
		w.stop()
		if n := len(w.api.sent()); n != 1 || !lost {
			t.Errorf("%d Events, want 1", n)
		}
		if w.pub.Requests()["409"] != 1 || w.pub.DroppedEvents() != 0 {
			t.Errorf("requests %v", w.pub.Requests())
		}
	})
}

func TestNodeMadeAnew(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		w.api.set(func() { w.api.uid, w.api.conditions = "uid-2", nil })
		w.change(bad("SysctlDrift", "a", probes.Critical), raised("SysctlDrift", "Changed"))
		sleep(time.Minute)
		w.stop()
		if e := w.api.sent(); len(e) != 1 || e[0].Involved.UID != "uid-2" {
			t.Errorf("Events %+v", e)
		}
		if len(w.ready) != 2 || w.ready[1].UID != "uid-2" {
			t.Errorf("readiness %+v", w.ready)
		}
		if c := w.api.condition("KubeletDrift"); c.Status != agent.False {
			t.Errorf("conditions were not published again: %+v", c)
		}
	})
}

func TestNodeMissing(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.api.uid = ""
		w.run(t)
		sleep(10 * time.Minute)
		if n := w.api.count("", time.Time{}); n > 20 || n != w.api.count("GET", time.Time{}) {
			t.Errorf("%d requests while the Node is missing", n)
		}
		if !strings.Contains(w.logs.String(), "knows no Node of this name") {
			t.Errorf("log: %s", w.logs)
		}
		w.api.set(func() { w.api.uid = "uid-9" })
		sleep(70 * time.Second)
		w.stop()
		if c := w.api.condition("SysctlDrift"); c.Status != agent.False {
			t.Errorf("condition %+v", c)
		}
	})
}

// Missing rights on conditions do not hold up Events, and the other way round.
func TestRefused(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.api.fail = func(r *http.Request) (*http.Response, error) {
			if r.Method == "PATCH" {
				return answer(403, status("nodes is forbidden")), nil
			}
			return nil, nil
		}
		w.run(t)
		w.change(bad("SysctlDrift", "a", probes.Critical), raised("SysctlDrift", "Changed"))
		sleep(time.Hour)
		if n := w.pub.Requests()["403"]; n > 25 {
			t.Errorf("%d refused applies in an hour", n)
		}
		if len(w.api.sent()) != 1 || strings.Count(w.logs.String(), "forbidden") != 1 {
			t.Errorf("%d Events; log: %s", len(w.api.sent()), w.logs)
		}
		w.api.set(func() {
			w.api.fail = func(r *http.Request) (*http.Response, error) {
				if r.Method == "POST" {
					return answer(403, status("events is forbidden")), nil
				}
				return nil, nil
			}
		})
		sleep(10 * time.Minute)
		from := time.Now()
		w.change(good("SysctlDrift"), raised("SysctlDrift", "Changed"))
		sleep(time.Hour)
		if c := w.api.condition("SysctlDrift"); c.Status != agent.False || !w.pub.Pending() {
			t.Errorf("condition %+v, pending %v", c, w.pub.Pending())
		}
		if n := w.api.count("POST", from); n > 25 {
			t.Errorf("%d refused Events in an hour", n)
		}
		w.api.set(func() { w.api.fail = nil })
		sleep(5 * time.Minute)
		if len(w.api.sent()) != 2 || w.pub.DroppedEvents() != 0 || w.pub.Pending() {
			t.Errorf("%d Events sent, %d dropped", len(w.api.sent()), w.pub.DroppedEvents())
		}
		w.stop()
	})
}

// An Event that the API server finds wrong does not block those behind it.
// TestEachConditionIsTold holds that what makes many conditions Unknown for one
// reason is told of each.
func TestEachConditionIsTold(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		want := []string{"A", "B", "C", "D", "E", "F", "G", "H"}
		for _, c := range want {
			w.pub.Publish([]agent.Happening{{Time: time.Now(), Kind: agent.Blinded, Condition: c, From: agent.False, To: agent.Unknown,
				Reason: agent.ProbeFailed, Severity: probes.Warning, Message: c}})
		}
		sleep(time.Minute)
		w.stop()
		var got []string
		for _, e := range w.api.sent() {
			got = append(got, e.Message)
		}
		if !slices.Equal(got, want) {
			t.Errorf("told %q, want %q", got, want)
		}
	})
}

func TestWrongEventIsDropped(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		w.api.fail = func(*http.Request) (*http.Response, error) { return answer(422, status("invalid")), nil }
		w.pub.Publish([]agent.Happening{raised("SysctlDrift", "Changed")})
		sleep(time.Second)
		if w.pub.DroppedEvents() != 1 || w.pub.events.waiting() {
			t.Errorf("%d dropped", w.pub.DroppedEvents())
		}
		w.stop()
	})
}

func TestFollow(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		w.pub.Follow(true)
		from := time.Now()
		sleep(10 * time.Minute)
		if n := w.api.count("GET", from); n < 18 || n > 23 {
			t.Errorf("%d reads in 10 min, want one each 30 s", n)
		}
		w.pub.Follow(false)
		from = time.Now()
		sleep(10 * time.Minute)
		if n := w.api.count("GET", from); n > 0 {
			t.Errorf("%d reads that nobody asked for", n)
		}
		w.stop()
	})
}

// TestReread is a probe that wants to know, all the time, what the Node says.
func TestReread(t *testing.T) {
	var got []agent.Readiness
	inBubble(t, func(c *Config) { c.Ready = func(r agent.Readiness) { got = append(got, r) } }, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		from := time.Now()
		for range 60 {
			w.pub.Reread()
			sleep(10 * time.Second)
		}
		if n := w.api.count("GET", from); n != 2 {
			t.Errorf("%d reads in 10 min, want one each 5 min", n)
		}
		if last := got[len(got)-1]; last.Kubelet != "v1.33.2" || last.Patch != "1.33.3" || time.Since(last.At) > 5*time.Minute {
			t.Errorf("read: %+v", last)
		}
		w.stop()
	})
}

func TestModeEvents(t *testing.T) {
	inBubble(t, func(c *Config) { c.Mode = Events }, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		w.change(bad("SysctlDrift", "a", probes.Critical), raised("SysctlDrift", "Changed"))
		sleep(24 * time.Hour)
		w.stop()
		if w.api.count("PATCH", time.Time{}) != 0 || len(w.api.sent()) != 1 || len(w.adopted) != 0 || w.pub.Pending() {
			t.Errorf("requests %v", w.pub.Requests())
		}
	})
}

func TestLeave(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		before := w.api.condition("SysctlDrift")
		w.pub.events.add([]agent.Happening{raised("SysctlDrift", "Changed"), // not yet seen by the loop
			{Time: time.Now(), Kind: agent.Occurred, Reason: agent.NodeShuttingDown, Severity: probes.Info, Message: "the node stops"}})
		w.stop()
		e := w.api.sent()
		if len(e) != 2 || e[0].Reason != agent.NodeShuttingDown || e[0].Type != "Normal" {
			t.Errorf("Events %+v", e)
		}
		if after := w.api.condition("SysctlDrift"); after != before {
			t.Errorf("leaving changed a condition: %+v", after)
		}
	})
}

func TestLeaveIsBounded(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.run(t)
		sleep(time.Minute)
		w.pub.api.http.Transport = hanging(func(int) {})
		w.pub.events.add([]agent.Happening{raised("SysctlDrift", "Changed")})
		from := time.Now()
		w.stop()
		if d := time.Since(from); d > leaveFor {
			t.Errorf("leaving took %s", d)
		}
	})
}

// BenchmarkNothingNew is what it costs to be told that nothing new is to be
// told: 8 conditions compared with those that the Node shows.
func BenchmarkNothingNew(b *testing.B) {
	w := &truth{since: map[string]time.Time{}}
	for _, t := range []string{agent.NodeDrift, "A", "B", "C", "D", "E", "F"} {
		w.put(good(t))
	}
	w.put(bad("SysctlDrift", "a", probes.Critical))
	p, err := New(Config{Node: "node0", Source: w.Snapshot, API: apiAt("http://api", &fakeAPI{})})
	if err != nil {
		b.Fatal(err)
	}
	s := w.Snapshot()
	p.uid, p.settled, p.applied, p.beat = "u", true, conditionsOf(&s, nil), time.Now().Add(time.Hour)
	b.ReportAllocs()
	for b.Loop() {
		if do, _ := p.next(time.Now()); do != nil {
			b.Fatal("a request is due")
		}
	}
}
