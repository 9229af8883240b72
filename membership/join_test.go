package membership_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chainmail/membership"
	"chainmail/membership/ring"
)

// refused checks the kind of an error and a part of its text.
func refused(t *testing.T, err, kind error, part string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v\nwant %v with %q", err, kind, part)
	}
}

func TestTokens(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.grow("a")[0]
		b, d := c.node("b"), c.node("d")
		ctx := t.Context()
		join := func(n *testNode, token string) error {
			return membership.Join(ctx, n.joinOptions(a, token))
		}
		good := a.token()
		refused(t, join(b, "no token"), membership.ErrRefused, "this is not a join token, or not the whole of it")
		refused(t, join(b, good[:len(good)-4]), membership.ErrRefused, "this is not a join token, or not the whole of it")

		// Somebody else's secret under the right CA.
		forged := []byte(good)
		if at := len(forged) - 2; forged[at] == 'A' {
			forged[at] = 'B'
		} else {
			forged[at] = 'A'
		}
		refused(t, join(b, string(forged)), membership.ErrRefused, "is not known to this cluster: get a new one")

		short, err := a.m.NewJoinToken(ctx, time.Minute)
		if err != nil || !short.ExpiresAt.Equal(time.Now().Add(time.Minute).Truncate(time.Second)) {
			t.Errorf("%+v, %v", short, err)
		}
		time.Sleep(time.Minute + time.Second)
		refused(t, join(b, short.Token), membership.ErrRefused, "expired at 2000-01-01T00:01:")
		for _, valid := range []time.Duration{time.Millisecond, 31 * 24 * time.Hour, -time.Hour} {
			_, err := a.m.NewJoinToken(ctx, valid)
			refused(t, err, membership.ErrRefused, "a join token can be valid for 1 s to 720h0m0s")
		}

		if err := join(b, good); err != nil {
			t.Fatal(err)
		}
		refused(t, join(d, good), membership.ErrRefused, "was used for b already: a token lets one node join")
		// A token of another cluster: the joiner hangs up before it says anything.
		x := c.node("x")
		x.create()
		x.start()
		c.eventually(10*time.Second, "x leads", x.m.Quorum)
		err = join(d, x.token())
		if err == nil || !strings.Contains(err.Error(), "not a member of the cluster that made the token") {
			t.Errorf("token of another cluster: %v", err)
		}
		if membership.Exists(d.dir) {
			t.Error("a refused join left a cluster directory behind")
		}
		// A directory that belongs to another cluster.
		o := x.joinOptions(a, a.token())
		o.Dir = filepath.Join(c.dir, "copy")
		if err := os.CopyFS(o.Dir, os.DirFS(x.dir)); err != nil {
			t.Fatal(err)
		}
		refused(t, membership.Join(ctx, o), membership.ErrExists, "a node cannot be in two")
	})
}

func TestJoinIsChecked(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.grow("a")[0]
		b := c.node("b")
		for _, tt := range []struct {
			change func(*membership.JoinOptions)
			want   string
		}{
			{func(o *membership.JoinOptions) { o.Name = "B" }, `"B" cannot be a node's name`},
			{func(o *membership.JoinOptions) { o.Name = "" }, "choose one with --name"},
			{func(o *membership.JoinOptions) { o.Name = "a" }, "choose another with --name, or --replace"},
			{func(o *membership.JoinOptions) { o.Name, o.Replace = "a", true }, "a is alive and cannot be replaced: stop it first"},
			{func(o *membership.JoinOptions) { o.Replace = true }, "there is no member b to replace: its members are a; leave --replace out"},
			{func(o *membership.JoinOptions) { o.Role = "king" }, `"king" is not a role`},
			{func(o *membership.JoinOptions) { o.Advertise.Gossip = "" }, `the address "" for gossip cannot be reached`},
			{func(o *membership.JoinOptions) { o.Advertise.Chain = ":8091" }, `the address ":8091" for chain cannot be reached`},
			{func(o *membership.JoinOptions) { o.Advertise.SMTP = "10.0.0.2:0" }, `the address "10.0.0.2:0" for smtp cannot be reached`},
			{func(o *membership.JoinOptions) { o.Peer = "10.0.0.1:1" }, "check that the address is the HTTP listener of a member"},
			{func(o *membership.JoinOptions) { o.Peer = "%" }, "with --peer"},
		} {
			o := b.joinOptions(a, a.token())
			tt.change(&o)
			if err := membership.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		}
		if len(a.m.View().Members) != 1 {
			t.Errorf("members %v", a.m.View().Ring())
		}
	})
}

// cutConn ends a connection after some bytes were read from it.
type cutConn struct {
	net.Conn
	left *int
}

func (c cutConn) Read(b []byte) (int, error) {
	if *c.left <= 0 {
		c.Conn.Close()
		return 0, errors.New("cut")
	}
	n, err := c.Conn.Read(b[:min(len(b), *c.left)])
	*c.left -= n
	return n, err
}

// TestJoinInterrupted: the answer is cut after any number of bytes; repeated
// with the same token, the same join goes through.
func TestJoinInterrupted(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.grow("a")[0]
		b := c.node("b")
		o := b.joinOptions(a, a.token())
		dial := o.Dial
		failed := 0
		for cut := 0; ; cut += 300 {
			left := cut
			o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := dial(ctx, network, addr)
				return cutConn{conn, &left}, err
			}
			err := membership.Join(t.Context(), o)
			if err == nil {
				break
			}
			failed++
			if membership.Exists(b.dir) {
				t.Fatalf("cut after %d bytes: a cluster directory", cut)
			}
		}
		if v := a.m.View(); len(v.Members) != 2 || v.Epoch != 2 || failed < 5 {
			t.Errorf("%d members at epoch %d after %d failures", len(v.Members), v.Epoch, failed)
		}
		if _, err := os.Stat(b.dir + ".join"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
		b.start()
		c.settled(2)
	})
}

// TestKilledWhileReplacing: whatever a kill leaves of the two renames, the node
// starts, and a repetition succeeds.
func TestKilledWhileReplacing(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.node("a")
		a.create()
		whole := filepath.Join(c.dir, "whole")
		if err := os.Rename(a.dir, whole); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name  string
			leave func() error
			there bool
		}{
			{"nothing", func() error { return nil }, false},
			{"new, empty", func() error { return os.Mkdir(a.dir+".new", 0o700) }, false},
			{"new, without the view", func() error {
				if err := os.CopyFS(a.dir+".new", os.DirFS(whole)); err != nil {
					return err
				}
				return os.Remove(filepath.Join(a.dir+".new", "view.json"))
			}, false},
			{"new, whole", func() error { return os.CopyFS(a.dir+".new", os.DirFS(whole)) }, true},
			{"both", func() error {
				return errors.Join(os.CopyFS(a.dir+".new", os.DirFS(whole)), os.CopyFS(a.dir, os.DirFS(whole)))
			}, true},
			{"old and new", func() error {
				return errors.Join(os.CopyFS(a.dir+".new", os.DirFS(whole)), os.CopyFS(a.dir+".old", os.DirFS(whole)))
			}, true},
		} {
			for _, direct := range []bool{false, true} {
				if err := errors.Join(os.RemoveAll(a.dir), os.RemoveAll(a.dir+".new"), os.RemoveAll(a.dir+".old"), tt.leave()); err != nil {
					t.Fatal(err)
				}
				if got := membership.Exists(a.dir); got != tt.there {
					t.Errorf("%s: exists %v", tt.name, got)
				}
				if !direct || !tt.there {
					if err := membership.Create(a.dir, membership.CreateOptions{Name: "a", Advertise: a.addresses(), Version: "1"}); err != nil {
						t.Errorf("%s: %v", tt.name, err)
					}
				}
				a.start()
				c.eventually(10*time.Second, tt.name+": leads", a.m.Quorum)
				a.stop()
			}
		}
	})
}

func TestRemove(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		a, gone := nodes[0], nodes[2]
		e, err := a.m.Remove(t.Context(), "c")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := a.m.View().Member("c"); ok || a.m.Alive("c") || a.m.View().Epoch < e {
			t.Errorf("still there: %+v", a.m.View())
		}
		c.eventually(10*time.Second, "c finds out", func() bool { return len(gone.m.Problems()) > 0 })
		if p := gone.m.Problems()[0]; !strings.Contains(p, "no longer a member of its cluster") || !strings.Contains(p, "join-node") {
			t.Errorf("problem: %s", p)
		}
		_, err = gone.m.SetPolicies(t.Context(), copies(1))
		refused(t, err, membership.ErrNotMember, "join-node")
		c.eventually(time.Minute, "two vote, and the gossip key is another", func() bool {
			return len(a.m.Voters()) == 2 && a.m.Rotating() == "" && nodes[1].m.Rotating() == ""
		})
		time.Sleep(time.Minute)
		if a.m.Alive("c") || nodes[1].m.Alive("c") || gone.m.Alive("a") {
			t.Error("gossip goes on with a removed node")
		}
		for _, wrong := range []struct {
			name string
			kind error
			part string
		}{
			{"c", membership.ErrNotMember, "c is not a member of this cluster: its members are a, b"},
		} {
			_, err := a.m.Remove(t.Context(), wrong.name)
			refused(t, err, wrong.kind, wrong.part)
		}
		// It comes back under its name with a new token, on its old disk.
		gone.stop()
		gone.join(a)
		c.settled(3)
		if p := gone.m.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
		if got := strings.Join(a.m.View().Ring(), ""); got != "abc" {
			t.Errorf("ring %s", got)
		}
	})
}

// TestRemoveTheLeader: the lead moves before the leader goes; and the last data
// member stays.
func TestRemoveTheLeader(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.grow("a", "b", "c")
		leader := c.leader()
		if _, err := leader.m.Remove(t.Context(), leader.name); err != nil {
			t.Fatal(err)
		}
		leader.stop()
		left := c.others()
		c.settled(2)
		c.eventually(time.Minute, "the keys are new", func() bool { return left[0].m.Rotating() == "" })
		w := c.node("w")
		w.role = ring.Witness
		w.join(left[0])
		c.settled(3)
		if _, err := left[0].m.Remove(t.Context(), left[1].name); err != nil {
			t.Fatal(err)
		}
		left[1].stop()
		_, err := left[0].m.Remove(t.Context(), left[0].name)
		refused(t, err, membership.ErrRefused, "is the last node that keeps mail")
		_, err = w.m.SetState(t.Context(), left[0].name, ring.Draining)
		refused(t, err, membership.ErrRefused, "is the last node that keeps mail")
	})
}

func TestReplace(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		nodes := c.grow("a", "b", "c")
		if _, err := nodes[2].m.Move(t.Context(), "c", "a"); err != nil {
			t.Fatal(err)
		}
		a, b := c.leader(), c.others(c.leader())[0]
		if b.name != "b" {
			t.Fatalf("%s leads", a.name)
		}
		old, _ := a.m.View().Member("b")
		b.kill()
		o := b.joinOptions(a, a.token())
		o.Replace = true
		if err := membership.Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), "b is alive and cannot be replaced") {
			t.Errorf("replaced while it seems alive: %v", err)
		}
		c.eventually(10*time.Second, "b is dead", func() bool { return !a.m.Alive("b") && !nodes[2].m.Alive("b") })

		former := filepath.Join(c.dir, "former")
		if err := os.Rename(b.dir, former); err != nil {
			t.Fatal(err)
		}
		if err := membership.Join(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		b.start()
		c.settled(3)
		now, _ := a.m.View().Member("b")
		if now.ID == old.ID || now.State != ring.Joining || slices.Equal(now.Certificates, old.Certificates) {
			t.Errorf("replaced: %+v", now)
		}
		if got := strings.Join(a.m.View().Ring(), ""); got != "acb" {
			t.Errorf("ring %s", got)
		}
		// Who still has the former disk is nobody any more.
		ghost := c.node("ghost")
		ghost.name, ghost.dir = "b", former
		if err := os.Remove(filepath.Join(former, "lock")); err != nil {
			t.Fatal(err)
		}
		ghost.start()
		time.Sleep(time.Minute)
		if p := ghost.m.Problems(); len(p) == 0 || !strings.Contains(strings.Join(p, " "), "removed or replaced") {
			t.Errorf("problems of the former b: %v", p)
		}
		if m, _ := a.m.View().Member("b"); m.ID != now.ID || m.Addresses != b.addresses() || !a.m.Alive("b") {
			t.Errorf("the former b changed something: %+v", m)
		}
	})
}

func TestCreateLeavesNoTrace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	if err := membership.Create(dir, membership.CreateOptions{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	for _, name := range []string{"view.json", "node.pem"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	for _, wrong := range []membership.CreateOptions{{Name: "A"}, {Name: "w", Role: ring.Witness}} {
		if err := membership.Create(filepath.Join(t.TempDir(), "cluster"), wrong); err == nil {
			t.Errorf("%+v: created", wrong)
		}
	}
	first, err := os.ReadFile(filepath.Join(dir, "view.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := membership.Create(dir, membership.CreateOptions{Name: "a"}); err != nil {
		t.Errorf("repeated, as after a kill: %v", err)
	}
	if again, _ := os.ReadFile(filepath.Join(dir, "view.json")); !bytes.Equal(first, again) {
		t.Error("a repetition made another cluster")
	}
}
