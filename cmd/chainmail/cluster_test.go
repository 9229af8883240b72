package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"chainmail/membership"
	"chainmail/membership/ring"
	"chainmail/node"
	"chainmail/node/api"
	"chainmail/testcluster/local"
)

// fakeMember is a node of a cluster.
type fakeMember struct {
	*fakeNode
	cluster []api.Cluster // one after the other, then the last for ever
	refusal *api.Error    // of every change
	verify  []api.ClusterVerifyEvent
	routes  []api.Route
	parked  []api.Parked
	safe    api.SafeToStop
	bodies  []string
	ended   bool   // after the last cluster but one
	end     func() // is called then
}

func (f *fakeMember) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, _ := strings.CutPrefix(r.URL.Path, api.Prefix)
	answer := func(v any) { _ = json.NewEncoder(w).Encode(v) }
	body, _ := io.ReadAll(r.Body)
	f.bodies = append(f.bodies, r.Method+" "+r.URL.RequestURI()+" "+string(body))
	switch {
	case path == "/cluster" && f.ended && len(f.cluster) == 1:
		if f.end != nil {
			f.end()
		}
		panic(http.ErrAbortHandler)
	case path == "/cluster" && len(f.cluster) > 0:
		answer(f.cluster[0])
		if len(f.cluster) > 1 {
			f.cluster = f.cluster[1:]
		}
	case path == "/cluster/verify":
		for _, ev := range f.verify {
			answer(ev)
		}
	case path == "/routes":
		answer(api.RouteList{Routes: f.routes})
	case strings.HasSuffix(path, "/parked"):
		answer(api.ParkedList{Parked: f.parked})
	case strings.HasSuffix(path, "/safe-to-stop"):
		answer(f.safe)
	case f.refusal != nil && r.Method != http.MethodGet:
		w.WriteHeader(http.StatusConflict)
		answer(f.refusal)
	case strings.HasSuffix(path, "/retry"):
		answer(api.Retried{Retried: 2})
	case path == "/cluster/ca":
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: []byte("the cluster's CA")})
	case strings.HasPrefix(path, "/tokens/"):
		answer(api.Changed{Epoch: 8, Message: "token 1bf13b8a opens nothing any more since epoch 8; not reached, and to be told when they are back: b\x1b[2J"})
	case path == "/cluster/tokens":
		answer(api.JoinToken{Token: "chainmail-join-1.secret", ExpiresAt: received.Add(time.Hour)})
	case strings.HasPrefix(path, "/cluster/"):
		answer(api.Changed{Epoch: 8, Message: "b drains\x1b[2J"})
	default:
		f.fakeNode.ServeHTTP(w, r)
	}
}

func newFakeMember() *fakeMember {
	return &fakeMember{fakeNode: newFakeNode(), cluster: []api.Cluster{greenCluster()}}
}

func greenCluster() api.Cluster {
	addresses := func(host string) map[string]string {
		return map[string]string{"smtp": host + ":25", "chain": host + ":8091", "gossip": host + ":8092", "raft": host + ":8093", "http": host + ":8025"}
	}
	return api.Cluster{
		ID: "0f1e2d3c4b5a69788796a5b4c3d2e1f0", Node: "a", Verdict: api.Green, Epoch: 7, Leader: "b", Voters: []string{"a", "b", "w"}, Quorum: true,
		Policies: api.Policies{Copies: 2, Replicas: 3, WhenShort: "accept", AckTimeout: 5}, At: received,
		Members: []api.Member{
			{Name: "a", Role: "data", State: "active", Version: "v0.2.0", Voter: true, Successor: "b", Addresses: addresses("10.0.0.1"), Backlog: &api.Backlog{}, Self: &api.SelfReport{}},
			{Name: "b", Role: "data", State: "active", Version: "v0.2.0", Voter: true, Successor: "a", Addresses: addresses("10.0.0.2"), Backlog: &api.Backlog{}, Self: &api.SelfReport{}},
			{Name: "w", Role: "witness", State: "active", Version: "v0.2.0", Voter: true, Addresses: map[string]string{"gossip": "10.0.0.3:8092", "raft": "10.0.0.3:8093", "http": "10.0.0.3:8025"}},
		},
	}
}

// troubledCluster has everything that can be wrong and unknown.
func troubledCluster() api.Cluster {
	c := greenCluster()
	oldest, bytes := received.Add(-90*time.Minute), int64(60<<20)
	next := received.Add(time.Minute)
	c.Verdict, c.Leader, c.Quorum, c.Epoch = api.Red, "", false, 1234
	c.Reasons = []string{
		"a: 3 mails that it took have fewer copies than the policy asks for",
		"b: lacks 2 receipts that no reachable member holds: 4f2a9c1be0d37786:7-8",
		"b: 12 receipts that only it holds cannot be read until it is back",
		"b: unreachable (connection refused)",
		"c\x1b[31m: its clock is 12 s behind",
	}
	c.Policies = api.Policies{Copies: 3, WhenShort: "tempfail", AckTimeout: 1.5, BackfillRate: 20 << 20, Balancers: []string{"192.0.2.10", "192.0.2.16/28"}}
	c.Members[0].Self.ShortNow = 3
	b := &c.Members[1]
	b.State, b.Reason, b.Self, b.Seen = "unreachable", "connection refused", nil, received.Add(-time.Minute)
	b.Backlog = &api.Backlog{Receipts: 1204, Oldest: &oldest, Lost: 2, LostAt: []string{"4f2a9c1be0d37786:7-8"}}
	b.Link = &api.Link{State: "connecting", Problem: "connection refused"}
	outOfReach := uint64(12)
	b.OutOfReach = &outOfReach
	c.Members = append(c.Members[:2:2],
		api.Member{
			Name: "c\x1b[31m", Role: "data", State: "joining", Version: "v0.1.9", Successor: "a",
			Backlog: &api.Backlog{Receipts: 98765, Bytes: &bytes}, Self: &api.SelfReport{}, Warnings: []string{"its clock is 12 s behind", "its version is v0.1.9"},
		},
		api.Member{
			Name: "d", Role: "data", State: "starting", Reason: "its archive is opened", Successor: "a",
			Link: &api.Link{State: "connecting", Problem: "connection refused"}, Warnings: []string{"its clock is 12 s behind"},
		},
		c.Members[2])
	c.Routes = []api.Route{
		{Name: "piler", Target: "piler.example.com:25", State: "retrying", Problem: "connection refused", Next: &next, Backlog: 17, Oldest: &oldest, Parked: 1},
		{Name: "second", Target: "10.1.1.1:25", State: "idle", Sent: 123456},
	}
	return c
}

func TestClusterOutput(t *testing.T) {
	green := newFakeMember
	red := newFakeMember()
	red.cluster = []api.Cluster{troubledCluster()}
	witness := newFakeMember()
	witness.cluster[0].Node = "w"
	yellow := newFakeMember()
	yellow.cluster[0].Verdict, yellow.cluster[0].Reasons = api.Yellow, []string{"c: joining: it is given the history"}
	refusing := newFakeMember()
	refusing.refusal = &api.Error{Error: "b holds 12 receipts that nobody else has", Hint: "start it again, or add --force b"}
	refusing.safe = api.SafeToStop{Name: "b", Reasons: []string{"c is unreachable: mail would have 1 copy", "the quorum would be lost"}}
	lone := newFakeMember()
	lone.cluster[0].Members = append(lone.cluster[0].Members[:1:1], lone.cluster[0].Members[2])
	loneByWitness := newFakeMember()
	loneByWitness.cluster[0].Members, loneByWitness.cluster[0].Node = lone.cluster[0].Members, "w"
	twice := newFakeMember()
	twice.cluster[0].Verdict, twice.cluster[0].Reasons = api.Red, []string{"a: 121 positions have two contents"}
	twice.cluster[0].Members[0].Self.Quarantined = 121
	for i := range 100 {
		twice.status.Conflicts = append(twice.status.Conflicts, api.Conflict{
			Position: fmt.Sprintf("4f2a9c1be0d37786:%d", i+7), Held: strings.Repeat("a", 64), Refused: strings.Repeat("b", 64),
			Peer: "b\x1b[2J", At: received, Kept: fmt.Sprintf("1111111111111111:%d", i+90),
		})
	}
	once := newFakeMember()
	once.status.Conflicts = twice.status.Conflicts[:1]
	down := newFakeMember()
	down.cluster[0].Members[1].State, down.cluster[0].Members[1].Self = api.StateUnreachable, nil
	downBad := newFakeMember()
	downBad.cluster = down.cluster
	downBad.safe = api.SafeToStop{Name: "b", Reasons: []string{"12 receipts are on no other node"}}
	safe := newFakeMember()
	safe.safe = api.SafeToStop{Name: "b", Safe: true}
	down.safe = safe.safe
	routes := newFakeMember()
	routes.routes = troubledCluster().Routes
	routes.parked = []api.Parked{{Position: "4f2a9c1be0d37786:42", SHA256: strings.Repeat("a", 64), Reply: "550 5.7.1 \x1b[2Jno", At: received, Attempts: 1}}
	same, differs := newFakeMember(), newFakeMember()
	same.verify = []api.ClusterVerifyEvent{{}, {Checked: 2000, Total: 2000}, {Checked: 2000, Total: 2000, Done: true}}
	differs.verify = []api.ClusterVerifyEvent{
		{Total: 9},
		{Checked: 3, Total: 9, Log: "4f2a9c1be0d37786", Node: "b", Problem: "is not what a and c hold", At: []string{"4f2a9c1be0d37786:2", "4f2a9c1be0d37786:3"}, Bad: 2},
		{Checked: 6, Total: 9, Node: "c", Problem: "does not answer", Bad: 3},
		{Checked: 9, Total: 9, Bad: 3, Done: true},
	}
	broken := newFakeMember()
	broken.verify = []api.ClusterVerifyEvent{{Checked: 1, Total: 9, Error: "the node is shutting down"}}

	for _, test := range []struct {
		name string
		node *fakeMember
		args string
		code int
	}{
		{"cluster-status-green", green(), "status", exitOK},
		{"cluster-status-yellow", yellow, "status", exitOK},
		{"cluster-status-witness", witness, "status", exitOK},
		{"cluster-status-red", red, "status", exitFailed},
		{"cluster-status-lone", lone, "status", exitOK},
		{"cluster-status-lone-witness", loneByWitness, "status", exitOK},
		{"cluster-status-conflicts", twice, "status", exitFailed},
		{"cluster-status-conflict", once, "status", exitOK},
		{"cluster-status-json", red, "status -o json", exitFailed},
		{"cluster-show", green(), "cluster show", exitOK},
		{"cluster-show-red", red, "cluster show", exitOK},
		{"cluster-set", green(), "cluster set copies=2 replicas=all when_short=tempfail ack_timeout=1500ms backfill_rate=unlimited", exitOK},
		{"cluster-set-balancers", green(), "cluster set balancers=192.0.2.17/28,192.0.2.10,2001:DB8::1,192.0.2.10", exitOK},
		{"cluster-set-no-balancers", green(), "cluster set balancers=", exitOK},
		{"cluster-set-balancers-none", green(), "cluster set balancers=none", exitOK},
		{"cluster-ca", green(), "cluster ca", exitOK},
		{"token-revoke", green(), "token revoke 1bf13b8a", exitOK},
		{"token-revoke-refused", refusing, "token revoke 1bf13b8a -o json", exitFailed},
		{"cluster-set-json", green(), "cluster set copies=2 -o json", exitOK},
		{"token-join", green(), "token join", exitOK},
		{"token-join-json", green(), "token join --valid 2d -o json", exitOK},
		{"drain-node", green(), "drain-node", exitOK},
		{"drain-node-cancel", green(), "drain-node b --cancel", exitOK},
		{"drain-node-refused", refusing, "drain-node b", exitFailed},
		{"remove-node", green(), "remove-node b --force b", exitOK},
		{"remove-node-refused", refusing, "remove-node b", exitFailed},
		{"ring-move", green(), "ring move b --after w", exitOK},
		{"keys-rotate", green(), "keys rotate", exitOK},
		{"safe-to-stop", safe, "safe-to-stop b", exitOK},
		{"safe-to-stop-down", down, "safe-to-stop b", exitOK},
		{"safe-to-stop-down-not", downBad, "safe-to-stop b", exitFailed},
		{"safe-to-stop-not", refusing, "safe-to-stop b", exitFailed},
		{"safe-to-stop-json", refusing, "safe-to-stop b -o json", exitFailed},
		{"route-list", routes, "route list", exitOK},
		{"route-list-json", routes, "route list -o json", exitOK},
		{"route-list-none", green(), "route list", exitOK},
		{"route-parked", routes, "route parked piler", exitOK},
		{"route-parked-none", green(), "route parked piler", exitOK},
		{"route-retry", routes, "route retry piler 4f2a9c1be0d37786:42", exitOK},
		{"verify-cluster", same, "verify --cluster", exitOK},
		{"verify-cluster-differs", differs, "verify --cluster", exitFailed},
		{"verify-cluster-json", differs, "verify --cluster -o json", exitFailed},
		{"verify-cluster-broken", broken, "verify --cluster", exitFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.node.bodies = nil
			code, stdout, stderr := runCommand(t, append(strings.Fields(test.args), "--socket", serveFake(t, test.node))...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			stdout = uptime.ReplaceAllString(stdout, "(UPTIME)")
			var asked strings.Builder
			for _, b := range test.node.bodies {
				if !strings.HasPrefix(b, "GET ") {
					asked.WriteString("--- asked " + b + "\n")
				}
			}
			golden(t, filepath.Join("testdata", "output", test.name+".txt"), "$ chainmail "+test.args+"\n"+stdout+"--- stderr\n"+stderr+asked.String())
		})
	}
}

// TestHelp keeps the help of the cluster's commands readable.
func TestHelp(t *testing.T) {
	var all strings.Builder
	for _, command := range []string{
		"", "join-node", "witness", "cluster", "cluster set", "cluster show", "token join", "drain-node", "remove-node", "ring move",
		"safe-to-stop", "recover", "keys rotate", "route retry", "route parked", "route list", "testcluster run", "status",
	} {
		code, stdout, stderr := runCommand(t, append(strings.Fields(command), "--help")...)
		if code != exitOK || stderr != "" {
			t.Errorf("%s: exit code %d, %s", command, code, stderr)
		}
		for line := range strings.Lines(stdout) {
			if isText := !regexp.MustCompile(`^\s+(-|chainmail |curl )`).MatchString(line); isText && columns(strings.TrimRight(line, "\n")) > 90 {
				t.Errorf("%s: a line of %d columns: %s", command, columns(line), line)
			}
		}
		fmt.Fprintf(&all, "$ chainmail %s --help\n%s\n", command, stdout)
	}
	golden(t, "testdata/output/help.txt", all.String())
}

// TestDrainWaits until the member is gone.
func TestDrainWaits(t *testing.T) {
	pollPeriod = time.Millisecond
	t.Cleanup(func() { pollPeriod = time.Second })
	stage := func(receipts uint64) api.Cluster {
		c := greenCluster()
		c.Members[1].State = api.StateDraining
		c.Members[1].Self = &api.SelfReport{State: api.StateDraining, ToHandOver: &receipts}
		return c
	}
	unclear := stage(0)
	unclear.Members[1].Self = nil
	left := greenCluster()
	left.Members = append(left.Members[:1:1], left.Members[2])
	f := newFakeMember()
	f.cluster = []api.Cluster{unclear, stage(1204), stage(300), stage(300), stage(0), left}
	code, _, stderr := runCommand(t, "drain-node", "b", "--wait", "--socket", serveFake(t, f))
	if code != exitOK {
		t.Errorf("exit code %d", code)
	}
	golden(t, "testdata/output/drain-node-wait.txt", stderr)

	f = newFakeMember()
	f.cluster = []api.Cluster{stage(5), greenCluster()}
	if code, _, stderr := runCommand(t, "drain-node", "b", "--wait", "--socket", serveFake(t, f)); code != exitFailed || !strings.Contains(stderr, "b does not drain any more") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestDrainWaitsForTheNodeThatIsAsked: it answers no more when it has left.
func TestDrainWaitsForTheNodeThatIsAsked(t *testing.T) {
	pollPeriod = time.Millisecond
	t.Cleanup(func() { pollPeriod = time.Second })
	const left, ended, unsure = "b has left the cluster.\n", "b has handed over everything, and has ended: it has left the cluster.\n", "cannot tell whether b has left"
	for _, test := range []struct {
		name, asked string
		receipts    uint64
		disk        string // the member that the last view on disk has; empty: there is none
		lost        bool   // the connections break, and the socket stays
		code        int
		says        string
	}{
		{"written down", "b", 7, "other", false, exitOK, left},
		{"written down, the socket is still there", "b", 0, "other", true, exitOK, left},
		{"nothing was left", "b", 0, "", false, exitOK, ended},
		{"nothing was left, by the disk a member", "b", 0, "b", false, exitOK, ended},
		{"nothing was left, and it still listens", "b", 0, "b", true, exitFailed, unsure},
		{"something was left", "b", 7, "b", false, exitFailed, unsure},
		{"another node was asked", "a", 0, "b", false, exitFailed, unsure},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := greenCluster()
			c.Node = test.asked
			c.Members[1].State = api.StateDraining
			c.Members[1].Self = &api.SelfReport{State: api.StateDraining, ToHandOver: &test.receipts}
			f := newFakeMember()
			f.cluster = []api.Cluster{c, c}
			f.ended = true
			socket := serveFake(t, f)
			if !test.lost {
				f.end = func() { _ = os.Remove(socket) }
			}
			if test.disk != "" {
				if err := membership.Create(node.ClusterDir(filepath.Dir(socket)), membership.CreateOptions{Name: test.disk, Role: ring.Data}); err != nil {
					t.Fatal(err)
				}
			}
			code, _, stderr := runCommand(t, "drain-node", "b", "--wait", "--socket", socket)
			if last := stderr[strings.LastIndex(strings.TrimSuffix(stderr, "\n"), "\n")+1:]; code != test.code || !strings.Contains(last, test.says) {
				t.Errorf("exit code %d: %s", code, stderr)
			}
		})
	}
}

func TestStatusWatches(t *testing.T) {
	f := newFakeMember()
	second := greenCluster()
	second.Epoch = 8
	f.cluster = append(f.cluster, second, greenCluster())
	ctx, cancel := context.WithCancel(t.Context())
	var out stopAfter
	out.stop = func() bool { return strings.Count(out.String(), "This node") == 3 }
	out.cancel = cancel
	var errs bytes.Buffer
	code := run(ctx, []string{"status", "--watch", "--interval", "1ms", "--socket", serveFake(t, f)}, streams{strings.NewReader(""), &out, &errs})
	if code != exitOK || errs.Len() > 0 || !strings.Contains(out.String(), "epoch 8") || strings.Contains(out.String(), "\x1b") {
		t.Errorf("exit code %d, %s\n%s", code, errs.String(), out.String())
	}

	// A node that is away is said to be so, and asked again.
	ctx, cancel = context.WithCancel(t.Context())
	away := stopAfter{cancel: cancel}
	away.stop = func() bool { return strings.Count(away.String(), "no node is running") == 2 }
	code = run(ctx, []string{"status", "--watch", "--interval", "1ms", "--socket", filepath.Join(scratch, "no.sock")}, streams{strings.NewReader(""), io.Discard, &away})
	if code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// stopAfter ends a command when it has written enough.
type stopAfter struct {
	bytes.Buffer
	stop   func() bool
	cancel context.CancelFunc
}

func (s *stopAfter) Write(p []byte) (int, error) {
	n, err := s.Buffer.Write(p)
	if s.stop() {
		s.cancel()
	}
	return n, err
}

// joins records what the commands do instead of joining and running.
type joins struct {
	joined  []node.JoinOptions
	ran     []node.Config
	refusal error
}

func recordJoins(t *testing.T) *joins {
	t.Helper()
	j := &joins{}
	join, start := joinCluster, runNode
	t.Cleanup(func() { joinCluster, runNode = join, start })
	joinCluster = func(_ context.Context, o node.JoinOptions) (api.Changed, error) {
		j.joined = append(j.joined, o)
		return api.Changed{Epoch: 4, Message: o.Config.Name + " is a member of the cluster now"}, j.refusal
	}
	runNode = func(_ *cobra.Command, c node.Config) error {
		j.ran = append(j.ran, c)
		return nil
	}
	return j
}

func TestJoinWritesTheConfiguration(t *testing.T) {
	j := recordJoins(t)
	dir := filepath.Join(newDataDir(t), "b")
	args := []string{
		"join-node", "--name", "b", "--peer", "10.0.0.1:8025", "--token", "chainmail-join-1.secret", "--data-dir", dir, "--replace",
		"--smtp", "127.0.0.1:2510", "--chain", "127.0.0.1:2511", "--http", "127.0.0.1:2514", "--advertise-chain", "192.0.2.7",
	}
	code, stdout, stderr := runCommand(t, args...)
	if code != exitOK || stderr != "" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	golden(t, "testdata/output/join-node.txt", strings.ReplaceAll(stdout, dir, "DIR"))
	o := j.joined[0]
	if o.Peer != "10.0.0.1:8025" || o.Token != "chainmail-join-1.secret" || !o.Replace || o.Version != version || o.Config.Name != "b" {
		t.Errorf("%+v", o)
	}
	file := filepath.Join(dir, "chainmail.yaml")
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(written, []byte("chainmail-join-1.secret")) {
		t.Error("the file holds the token")
	}
	golden(t, "testdata/output/join-node.yaml", strings.ReplaceAll(string(written), dir, "DIR"))

	// The node that starts with the file is the one that joined, by any way to name it.
	for _, args := range [][]string{{"--config", file}, {"--data-dir", dir}} {
		if code, _, stderr := runCommand(t, append([]string{"node"}, args...)...); code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if got := settings(j.ran[len(j.ran)-1]); fmt.Sprint(got) != fmt.Sprint(settings(o.Config)) {
			t.Errorf("%v: the file reads as\n%v\nwant\n%v", args, got, settings(o.Config))
		}
	}

	// Again with the same flags is fine; with others it is refused, and nothing is asked.
	if code, _, stderr := runCommand(t, args...); code != exitOK || len(j.joined) != 2 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	code, _, stderr = runCommand(t, append(args, "--chain", "127.0.0.1:9999", "--advertise-chain", "192.0.2.8")...)
	if code != exitUsage || len(j.joined) != 2 {
		t.Errorf("exit code %d", code)
	}
	golden(t, "testdata/output/join-node-other.txt", strings.ReplaceAll(stderr, dir, "DIR"))
	if again, _ := os.ReadFile(file); !bytes.Equal(again, written) {
		t.Error("the file was changed")
	}
}

func TestJoinStarts(t *testing.T) {
	j := recordJoins(t)
	dir := newDataDir(t)
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"join-node", "--name", "b", "--peer", "a:8025", "--token", "-", "--data-dir", dir, "--start"},
		streams{strings.NewReader(" chainmail-join-1.stdin \n"), &out, &errs})
	if code != exitOK || len(j.ran) != 1 || j.joined[0].Token != "chainmail-join-1.stdin" || j.ran[0].Name != "b" ||
		errs.String() != "b is a member of the cluster since epoch 4.\n" {
		t.Errorf("exit code %d, %s, %+v", code, errs.String(), j)
	}
}

// TestJoinRefused: what is wrong here is found before the token is used.
func TestJoinRefused(t *testing.T) {
	j := recordJoins(t)
	dir := newDataDir(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := membership.Create(node.ClusterDir(filepath.Join(dir, "host")), membership.CreateOptions{Name: "host", Role: ring.Data}); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, line := range []string{
		"join-node", "join-node --peer a --token t", "join-node --peer a:8025 --token -",
		"join-node --peer a:8025 --token t --name B --data-dir DIR/x",
		"join-node --peer a:8025 --token t --name b --data-dir DIR/x --config DIR/file/c.yaml",
		"witness --name w --data-dir DIR/x",
		"recover", "recover --i-lost-the-quorum --data-dir DIR/host", "recover --i-lost-the-quorum --data-dir DIR/host --yes nobody",
		"cluster set", "cluster set copis=2", "cluster set copies", "cluster set copies=0", "cluster set copies=2 copies=3", "cluster set replicas=some",
		"cluster set when_short=drop", "cluster set ack_timeout=5", "cluster set backfill_rate=fast",
		"cluster set balancers=lb.example.org", "cluster set balancers=0.0.0.0/0", "cluster set balancers=192.0.2.1,,192.0.2.2",
		"drain-node a b", "remove-node", "remove-node b --force a", "ring move b", "safe-to-stop", "token join --valid 1ms", "token join --valid soon",
		"route retry", "verify --cluster abcd", "status --interval 0s", "testcluster run --nodes 0", "testcluster run --replicas 0", "testcluster run --base-port 65530",
	} {
		t.Setenv("CHAINMAIL_NAME", "host")
		code, stdout, stderr := runCommand(t, strings.Fields(strings.ReplaceAll(line, "DIR", dir))...)
		if stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "chainmail: ") {
			t.Errorf("%s: not one line on standard error: %q %q", line, stdout, stderr)
		}
		fmt.Fprintf(&got, "$ chainmail %s\n%sexit code %d\n\n", line, strings.ReplaceAll(stderr, dir, "DIR"), code)
	}
	golden(t, "testdata/output/refused-cluster.txt", got.String())
	if len(j.joined) > 0 {
		t.Errorf("asked for %+v", j.joined)
	}

	j.refusal = errors.New("the token has expired")
	target := filepath.Join(dir, "never")
	code, _, stderr := runCommand(t, "join-node", "--peer", "a:8025", "--token", "t", "--data-dir", target)
	if code != exitFailed || stderr != "chainmail: the token has expired\n" || exists(filepath.Join(target, "chainmail.yaml")) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestWitnessJoinsOnce(t *testing.T) {
	j := recordJoins(t)
	dir := filepath.Join(newDataDir(t), "w")
	first := []string{"witness", "--name", "w", "--data-dir", dir, "--peer", "a:8025", "--token", "t", "--raft", "127.0.0.1:9"}
	if code, _, stderr := runCommand(t, first...); code != exitOK || stderr != "w is a member of the cluster since epoch 4.\n" {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	// Much like what joining would have left.
	if err := membership.Create(node.ClusterDir(dir), membership.CreateOptions{Name: "w", Role: ring.Data}); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runCommand(t, "witness", "--data-dir", dir); code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if len(j.joined) != 1 || len(j.ran) != 2 {
		t.Fatalf("joined %d times, ran %d times", len(j.joined), len(j.ran))
	}
	for _, c := range append(j.ran, j.joined[0].Config) {
		if c.Name != "w" || c.Role != node.RoleWitness || c.Raft != "127.0.0.1:9" || c.SMTP != "" {
			t.Errorf("%+v", c)
		}
	}

	other := newDataDir(t)
	if err := os.WriteFile(filepath.Join(other, "chainmail.yaml"), []byte("name: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runCommand(t, "witness", "--data-dir", other); code != exitUsage || !strings.Contains(stderr, "keeps mail") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestRecover(t *testing.T) {
	old := recoverQuorum
	t.Cleanup(func() { recoverQuorum = old })
	var recovered []string
	recoverQuorum = func(dir string) (string, error) {
		recovered = append(recovered, dir)
		return "b is the only member now.\nStart it.", nil
	}
	dir := newDataDir(t)
	t.Setenv("CHAINMAIL_NAME", "b")
	if code, _, stderr := runCommand(t, "recover", "--i-lost-the-quorum", "--data-dir", dir, "--yes", "b"); code != exitFailed || !strings.Contains(stderr, dir) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if err := membership.Create(node.ClusterDir(dir), membership.CreateOptions{Name: "b", Role: ring.Data}); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := runCommand(t, "recover", "--i-lost-the-quorum", "--data-dir", dir, "--yes", "b")
	if code != exitOK || stdout != "b is the only member now.\nStart it.\n" || len(recovered) != 1 || recovered[0] != dir {
		t.Errorf("exit code %d, %v: %s %s", code, recovered, stdout, stderr)
	}
	f := newFakeMember()
	if code, _, stderr := runCommand(t, "recover", "--i-lost-the-quorum", "--socket", serveFake(t, f), "--data-dir", dir, "--yes", "b"); code != exitFailed || !strings.Contains(stderr, "stop it first") || len(recovered) != 1 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestConfirm(t *testing.T) {
	for typed, good := range map[string]bool{"b\n": true, " b \n": true, "b": true, "B\n": false, "yes\n": false, "": false} {
		var out bytes.Buffer
		if err := confirm(strings.NewReader(typed), &out, "Remove b?", "b"); (err == nil) != good {
			t.Errorf("%q: %v", typed, err)
		}
		if !strings.HasPrefix(out.String(), "Remove b?\nType b to go on: ") {
			t.Errorf("asked %q", out.String())
		}
	}
}

func TestTestClusterOptions(t *testing.T) {
	old := runTestCluster
	t.Cleanup(func() { runTestCluster = old })
	var got local.RunOptions
	runTestCluster = func(_ context.Context, o local.RunOptions) error {
		got = o
		_, err := fmt.Fprintln(o.Out, "ready")
		return err
	}
	code, stdout, stderr := runCommand(t, "testcluster", "run", "--nodes", "5", "--copies", "2", "--replicas", "all", "--base-port", "3000", "--dir", "x")
	if code != exitOK || stdout != "ready\n" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if got.Program == "" || got.Nodes != 5 || got.Copies != 2 || got.Replicas != -1 || got.BasePort != 3000 || got.Dir != "x" {
		t.Errorf("%+v", got)
	}
}
