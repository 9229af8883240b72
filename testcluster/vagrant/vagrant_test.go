package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"chainmail/node/api"
	"chainmail/testcluster/load"
)

func TestStatusOfVagrantIsRead(t *testing.T) {
	out := `1795468126,node1,metadata,provider,libvirt
1795468126,lb,metadata,provider,libvirt
1795468127,node1,provider-name,libvirt
1795468127,node1,state,running
1795468127,node1,state-human-long,The Libvirt domain is running.%!(VAGRANT_COMMA) stop it
1795468127,lb,provider-name,libvirt
1795468127,lb,state,not_created
1795468127,,ui,info,Current machine states
`
	want := []host{{"node1", "libvirt", "running"}, {"lb", "libvirt", "not_created"}}
	if got := parseStatus([]byte(out)); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestConfigurationOfSSHIsCut(t *testing.T) {
	out := "Host node1\n  HostName 192.0.2.1\n  User vagrant\n\nHost lb\n  HostName 192.0.2.2\n"
	got := parseSSHConfig([]byte(out))
	if len(got) != 2 || !strings.HasPrefix(got["node1"], "Host node1\n  HostName 192.0.2.1\n  User vagrant\n") ||
		got["lb"] != "Host lb\n  HostName 192.0.2.2\n" {
		t.Errorf("%q", got)
	}
}

func TestCardOfANetworkIsFound(t *testing.T) {
	out := ` vnet0   network   vagrant-libvirt        virtio   52:54:00:31:79:7c
 vnet1   network   chainmail-192.168.60   virtio   52:54:00:09:47:ef
 vnet2   network   chainmail-192.168.61   virtio   52:54:00:64:67:b0
`
	for network, want := range map[string]string{
		"192.168.60.0/24": "52:54:00:09:47:ef", "192.168.61.0/24": "52:54:00:64:67:b0", "192.168.6.0/24": "",
	} {
		if got := parseCards(out, netip.MustParsePrefix(network)); got != want {
			t.Errorf("%s: card %q, want %q", network, got, want)
		}
	}
}

// TestWellMeansAllOfIt: a cluster that lacks anything is not waited for in vain,
// nor taken for well.
func TestWellMeansAllOfIt(t *testing.T) {
	nodes := []string{"node1", "node2"}
	whole := func(change func(*api.Cluster)) api.Cluster {
		c := api.Cluster{Verdict: api.Green, Members: []api.Member{
			{Name: "node1", State: "active", Backlog: &api.Backlog{}},
			{Name: "node2", State: "active", Backlog: &api.Backlog{}},
		}}
		change(&c)
		return c
	}
	for want, change := range map[string]func(*api.Cluster){
		"":                              func(*api.Cluster) {},
		"red: fire":                     func(c *api.Cluster) { c.Verdict, c.Reasons = api.Red, []string{"fire"} },
		"yellow: no leader":             func(c *api.Cluster) { c.Verdict, c.Reasons = api.Yellow, []string{"no leader"} },
		"node2 is no member":            func(c *api.Cluster) { c.Members = c.Members[:1] },
		"node2 is joining":              func(c *api.Cluster) { c.Members[1].State = "joining" },
		"nobody knows what node1 lacks": func(c *api.Cluster) { c.Members[0].Backlog = nil },
		"node2 lacks 7 receipts":        func(c *api.Cluster) { c.Members[1].Backlog.Receipts = 7 },
	} {
		if got := unwell(whole(change), nodes); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLossIsSeen(t *testing.T) {
	for name, report := range map[string]load.CheckReport{
		"missing":    {Acked: 3, Missing: []string{"aa"}},
		"altered":    {Acked: 3, Altered: []string{"aa"}},
		"unreadable": {Acked: 3, Unreadable: []string{"aa"}},
		"short list": {Acked: 2},
	} {
		if err := judge("node1", report, 3); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := judge("node1", load.CheckReport{Acked: 3, Duplicated: []string{"aa"}}, 3); err != nil {
		t.Errorf("a mail that is there twice: %v", err)
	}
}

// TestLongestGap: also one that has not ended yet.
func TestLongestGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &ackList{w: io.Discard}
		time.Sleep(time.Minute) // before the watch: does not count
		a.watch()
		for _, pause := range []time.Duration{time.Second, 5 * time.Second, 2 * time.Second} {
			time.Sleep(pause)
			if _, err := a.Write([]byte("x\n")); err != nil {
				t.Fatal(err)
			}
		}
		begun := time.Now().Add(-7 * time.Second)
		if gap, at := a.longest(); gap != 5*time.Second || !at.Equal(begun) {
			t.Errorf("longest gap %v at %v, want 5s at %v", gap, at, begun)
		}
		time.Sleep(9 * time.Second)
		if gap, _ := a.longest(); gap != 9*time.Second {
			t.Errorf("with a gap that goes on: %v, want 9s", gap)
		}
		if a.total() != 3 {
			t.Errorf("%d acknowledged, want 3", a.total())
		}
	})
}

func TestMailTakenIsSummed(t *testing.T) {
	metrics := `# TYPE chainmail_smtp_messages_total counter
chainmail_smtp_messages_total{code="250",connector="chain"} 100
chainmail_smtp_messages_total{code="250",connector="smtp"} 50
chainmail_smtp_messages_total{code="250",connector="smtps"} 7
chainmail_smtp_messages_total{code="452",connector="smtp"} 1000
chainmail_archive_receipts_total 50
`
	if n, err := sumTaken(strings.NewReader(metrics)); err != nil || n != 57 {
		t.Errorf("%v, %v, want 57", n, err)
	}
}

func TestClientOfAReceipt(t *testing.T) {
	got, err := clientOf([]byte(`{"receipts":[{"client":"192.0.2.7:58090"}]}`))
	if err != nil || got != netip.MustParseAddr("192.0.2.7") {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := clientOf([]byte(`{"receipts":[]}`)); err == nil {
		t.Error("no receipt: no error")
	}
}

// TestTooFewHostsAreNoPass: a smaller cluster would skip what is to be shown.
func TestTooFewHostsAreNoPass(t *testing.T) {
	nodes := []host{{Name: "node1"}, {Name: "node2"}, {Name: "node3"}}
	lb := host{Name: "lb", Provider: "libvirt"}
	for _, hosts := range [][]host{nodes, append(slices.Clone(nodes[:2]), lb)} {
		if err := (&drill{}).plan(hosts); err == nil {
			t.Errorf("%v: no error", hosts)
		}
	}
	d := &drill{}
	if err := d.plan(append(slices.Clone(nodes), host{Name: "witness"}, lb)); err != nil || len(d.nodes) != 3 || d.provider != "libvirt" {
		t.Errorf("%v: nodes %v, provider %q", err, d.nodes, d.provider)
	}
}

// TestAFaultThatDidNotHappenIsNoPass: nor is it mended.
func TestAFaultThatDidNotHappenIsNoPass(t *testing.T) {
	unfelt := errors.New("the fault did not happen")
	fault := []step{{
		"cut", "is not felt", (*drill).nothing,
		func(*drill, context.Context) error { return unfelt },
		func(*drill, context.Context) error { t.Error("was mended"); return nil },
	}}
	d := &drill{out: io.Discard, acked: &ackList{w: io.Discard}, lab: &lab{}}
	if err := verdict(d.do(t.Context(), fault)); !errors.Is(err, unfelt) {
		t.Errorf("verdict %v", err)
	}
	members := api.Cluster{Members: []api.Member{{Name: "node1", State: "active"}, {Name: "node2", State: api.StateUnreachable}}}
	for name, want := range map[string]string{"node1": "active", "node2": "unreachable", "node3": "no member"} {
		if got := stateOf(members, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// TestStepsAfterAFailureAreNotReached: and nothing of it is a pass.
func TestStepsAfterAFailureAreNotReached(t *testing.T) {
	broken := errors.New("no power")
	two := []step{
		{"one", "breaks", func(*drill, context.Context) error { return broken }, (*drill).nothing, (*drill).nothing},
		{"two", "is fine", func(*drill, context.Context) error { t.Error("was done"); return nil }, (*drill).nothing, (*drill).nothing},
	}
	d := &drill{out: io.Discard, acked: &ackList{w: io.Discard}, lab: &lab{}}
	d.sessions = 0
	results := d.do(t.Context(), two)
	if !errors.Is(results[0].err, broken) || !errors.Is(results[1].err, errNotReached) || !errors.Is(verdict(results), broken) {
		t.Errorf("%v, %v; verdict %v", results[0].err, results[1].err, verdict(results))
	}
	text := table(results)
	if !strings.Contains(text, "FAILED") || !strings.Contains(text, "not reached") || strings.Contains(text, "passed") {
		t.Errorf("table:\n%s", text)
	}
}

func TestStepsAreChosenByName(t *testing.T) {
	all, err := choose("")
	if err != nil || len(all) != len(steps) {
		t.Errorf("all: %d steps, %v", len(all), err)
	}
	some, err := choose("replace, flow")
	if err != nil || len(some) != 2 || some[0].name != "replace" || some[1].name != "flow" {
		t.Errorf("%v, %v", some, err)
	}
	if _, err := choose("flow,fire"); err == nil || !strings.Contains(err.Error(), "fire") {
		t.Errorf("an unknown step: %v", err)
	}
}

// TestFailedVagrantIsToldWithItsWords uses a vagrant that fails.
func TestFailedVagrantIsToldWithItsWords(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "vagrant")
	script := "#!/bin/sh\necho doing \"$@\"\necho 'the box is missing' >&2\nfor i in $(seq 40); do echo '/usr/lib/x.rb:48:in `call'; done\nexit 3\n"
	if err := os.WriteFile(fake, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	l := &lab{vagrant: fake, dir: t.TempDir(), log: &log}
	err := l.run(t.Context(), "up", "node2")
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "the box is missing") {
		t.Errorf("error %v", err)
	}
	if !strings.Contains(log.String(), "$ vagrant up node2\n") || !strings.Contains(log.String(), "doing up node2") {
		t.Errorf("log %q", log.String())
	}
}

func TestQuotedForTheOtherShell(t *testing.T) {
	for _, text := range []string{"", "plain", `it's "$HOME" \ *`, "two\nlines"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf("printf %%s %s", quote(text))).Output()
		if err != nil || string(out) != text {
			t.Errorf("%q came out as %q, %v", text, out, err)
		}
	}
}
