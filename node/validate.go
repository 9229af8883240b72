package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"chainmail/node/smtpd"
)

// Problem is one thing in a configuration that the node refuses.
type Problem struct {
	Key   string // as in the file, for example "connectors[1].listen"
	What  string // what is wrong with it
	Value string // the value at fault
	Do    string // what the operator should do
}

// Error prints the problem in one line.
func (p Problem) Error() string {
	if p.Value == "" {
		return fmt.Sprintf("%s: %s: %s", p.Key, p.What, p.Do)
	}
	return fmt.Sprintf("%s: %s (%s): %s", p.Key, p.What, p.Value, p.Do)
}

// Problems is everything that is wrong with a configuration.
type Problems []Problem

// Error prints one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Validate checks an effective configuration (see Complete) as far as that is
// possible without opening anything: values, files, directories and clashes.
// Its error is a Problems.
func (c Config) Validate() error {
	var v validator
	v.name(c.Name)
	v.dataDir(c.DataDir)
	oneOf(&v, "role", c.Role, RoleData, RoleWitness)
	v.own(c)
	v.advertise(c.Advertise)
	v.keyPair("http_tls", c.HTTPTLS.Cert, c.HTTPTLS.Key)
	v.clients("chain_allow", c.ChainAllow)
	for i, k := range c.Connectors {
		v.connector(fmt.Sprintf("connectors[%d]", i), k, c.SMTP)
	}
	v.uniqueNames(c.Connectors)
	for i, r := range c.Routes {
		v.route(fmt.Sprintf("routes[%d]", i), r, c.Routes[:i])
	}
	v.clashes(c)
	v.limits(c)
	oneOf(&v, "log.level", c.Log.Level, LogDebug, LogInfo, LogWarn, LogError)
	oneOf(&v, "log.format", c.Log.Format, LogText, LogJSON)
	if v.problems == nil {
		return nil
	}
	return v.problems
}

// validator gathers problems, so that an operator sees all of them at once.
type validator struct{ problems Problems }

func (v *validator) add(key, what, value, do string) {
	v.problems = append(v.problems, Problem{key, what, value, do})
}

// nodeName has no capitals, because names are compared as they are and host
// names without regard to case.
var nodeName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

func (v *validator) name(name string) {
	if !nodeName.MatchString(name) {
		v.add("name", "not a node name", name, "use 1 to 63 small letters, digits, '-', '.' and '_', a letter or digit first and last, for example mail-archive-1")
	}
}

// dataDir tries to create a file, because permissions, read-only mounts,
// quotas and ACLs are only told together by the kernel itself.
func (v *validator) dataDir(dir string) {
	if dir == "" {
		v.add("data_dir", "missing", dir, "name the directory that shall hold the archive, for example /var/lib/chainmail")
		return
	}
	if abs, err := filepath.Abs(dir); err == nil && len(filepath.Join(dir, adminSocket)) > maxSocketPath {
		v.add("data_dir", "path too long for the socket "+adminSocket+" in it", abs, fmt.Sprintf("use a path of at most %d characters", maxSocketPath-len(adminSocket)-1))
		return
	}
	existing := dir
	info, err := os.Stat(existing)
	for missing(err) && filepath.Dir(existing) != existing {
		existing = filepath.Dir(existing)
		info, err = os.Stat(existing)
	}
	if err == nil && !info.IsDir() {
		v.add("data_dir", existing+" is not a directory", dir, "name a directory, or remove the file")
		return
	}
	probe, err := os.CreateTemp(existing, ".chainmail-check-*")
	if err != nil {
		v.add("data_dir", "cannot write in "+existing+": "+cause(err), dir, "create it with: install -d -m 700 -o USER DIRECTORY, or choose another")
		return
	}
	probe.Close()
	os.Remove(probe.Name())
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func (v *validator) connector(key string, k Connector, smtp string) {
	if k.Name == "" {
		v.add(key+".name", "missing", k.Name, "give the connector a name; receipts and metrics carry it")
	}
	oneOf(v, key+".kind", k.Kind, KindSMTP, KindLMTP)
	if k.Name == smtpConnector && smtp != "" {
		v.address("smtp", k.Listen)
	} else {
		v.address(key+".listen", k.Listen)
	}
	oneOf(v, key+".journal", k.Journal, JournalNone, JournalExchange)
	if oneOf(v, key+".tls.mode", k.TLS.Mode, TLSNone, TLSStartTLS, TLSRequired, TLSImplicit) {
		v.tls(key+".tls", k.TLS)
	}
	if oneOf(v, key+".auth.mode", k.Auth.Mode, AuthOff, AuthOptional, AuthRequired) {
		v.auth(key+".auth", k.Auth)
	}
	v.clients(key+".allow.clients", k.Allow.Clients)
	v.mailboxes(key+".allow.senders", k.Allow.Senders)
	v.mailboxes(key+".allow.recipients", k.Allow.Recipients)
	v.networks(key+".proxy_protocol.trusted", k.ProxyProtocol.Trusted)
}

func (v *validator) tls(key string, t TLS) {
	switch {
	case t.Mode == TLSNone && t.Cert != "":
		v.add(key+".mode", "a certificate is given but not used", string(t.Mode), "write starttls, required or implicit, or remove cert and key")
	case t.Mode != TLSNone && t.Cert == "" && t.Key == "":
		v.add(key+".cert", "missing, and mode "+string(t.Mode)+" needs it", t.Cert, "name the PEM files of the certificate (cert) and its key (key)")
	default:
		v.keyPair(key, t.Cert, t.Key)
	}
}

func (v *validator) keyPair(key, cert, private string) {
	switch {
	case cert == "" && private == "":
		return
	case cert == "":
		v.add(key+".cert", "missing beside key", private, "name the PEM file of the certificate")
		return
	case private == "":
		v.add(key+".key", "missing beside cert", cert, "name the PEM file of the private key")
		return
	}
	readable := true
	for _, f := range []struct{ key, file string }{{".cert", cert}, {".key", private}} {
		if _, err := os.ReadFile(f.file); err != nil {
			readable = false
			v.add(key+f.key, "cannot read the file: "+cause(err), f.file, "name a PEM file that the node's user may read")
		}
	}
	if !readable {
		return
	}
	if _, err := tls.LoadX509KeyPair(cert, private); err != nil {
		v.add(key+".cert", "not a usable certificate: "+strings.TrimPrefix(err.Error(), "tls: "), cert, "give the PEM certificate chain and the PEM key that belongs to it")
	}
}

func (v *validator) auth(key string, a Auth) {
	if a.Mode == AuthOff {
		return
	}
	if a.Users == "" {
		v.add(key+".users", "missing, and mode "+string(a.Mode)+" needs it", a.Users, "name a file made with: htpasswd -B -c FILE USER")
		return
	}
	switch err := smtpd.CheckUsers(a.Users); {
	case errors.Is(err, fs.ErrNotExist):
		v.add(key+".users", cause(err), a.Users, "make the file with: htpasswd -B -c FILE USER")
	case err != nil: // -c would empty a file that is there
		v.add(key+".users", cause(err), a.Users, "mend the line, or set the password again with: htpasswd -B FILE USER")
	}
}

func (v *validator) networks(key string, list []string) {
	for i, s := range list {
		if !isNetwork(s) {
			v.add(fmt.Sprintf("%s[%d]", key, i), "not an IP address or CIDR block", s, "write for example 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32")
		}
	}
}

func isNetwork(s string) bool {
	_, errAddr := netip.ParseAddr(s)
	_, errBlock := netip.ParsePrefix(s)
	return errAddr == nil || errBlock == nil
}

func (v *validator) clients(key string, list []string) {
	for i, s := range list {
		if !isNetwork(s) && !domain.MatchString(s) {
			v.add(fmt.Sprintf("%s[%d]", key, i), "not an IP address, CIDR block or domain", s, "write for example 192.0.2.7, 10.0.0.0/8 or example.com")
		}
	}
}

// domain has letters of any script, and a last label that is not a number: that
// would be a broken IP address.
var domain = regexp.MustCompile(`^([\pL\pN_]([\pL\pN_-]*[\pL\pN_])?\.)*[\pL_]([\pL\pN_-]*[\pL\pN_])?\.?$`)

func (v *validator) mailboxes(key string, list []string) {
	for i, s := range list {
		at := strings.LastIndexByte(s, '@')
		if s == "<>" || at != 0 && domain.MatchString(s[at+1:]) && !strings.ContainsAny(s, " \t<>") {
			continue
		}
		v.add(fmt.Sprintf("%s[%d]", key, i), "not an address or a domain", s, "write for example journal@example.com or example.com")
	}
}

func (v *validator) address(key, addr string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(path) || len(path) > maxSocketPath {
			v.add(key, "not the path of a socket", addr, fmt.Sprintf("write unix:/path with at most %d characters, for example unix:/run/chainmail/lmtp", maxSocketPath))
		}
		return
	}
	host, port, err := net.SplitHostPort(addr)
	n, errPort := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		v.add(key, "not an address to listen on", addr, "write host:port, for example 127.0.0.1:2525, or :25 for every interface")
	case errPort != nil || n > 65535:
		v.add(key, "port is not a number from 0 to 65535", addr, "write host:port, for example 127.0.0.1:2525, or :25 for every interface")
	case strings.ContainsAny(host, " /@"):
		v.add(key, "not a host name or IP address before the port", addr, "write host:port, for example 127.0.0.1:2525, or :25 for every interface")
	}
}

// own checks the listeners that every node has one of.
func (v *validator) own(c Config) {
	for _, l := range c.listeners() {
		switch {
		case l.key == "smtp", strings.HasPrefix(l.key, "connectors"): // checked with its connector
		case strings.HasPrefix(l.addr, "unix:"):
			v.add(l.key, "other nodes cannot reach a socket", l.addr, "write host:port, for example 192.0.2.7:8091")
		default:
			v.address(l.key, l.addr)
		}
	}
}

func (v *validator) advertise(a Advertise) {
	for _, x := range []struct{ key, addr string }{
		{"smtp", a.SMTP}, {"chain", a.Chain}, {"gossip", a.Gossip}, {"raft", a.Raft}, {"http", a.HTTP},
	} {
		key := "advertise." + x.key
		host, _, err := net.SplitHostPort(x.addr)
		switch {
		case x.addr == "":
		case err == nil && wildcard(host):
			v.add(key, "nobody can reach that", x.addr, "write the address by which others reach this node, for example 192.0.2.7 or 192.0.2.7:8091")
		case err == nil:
			v.address(key, x.addr)
		case strings.ContainsAny(x.addr, " /@"):
			v.add(key, "not a host name or IP address", x.addr, "write for example 192.0.2.7 or 192.0.2.7:8091")
		}
	}
}

func (v *validator) route(key string, r Route, earlier []Route) {
	if !nodeName.MatchString(r.Name) {
		v.add(key+".name", "not the name of a route", r.Name, "use 1 to 63 small letters, digits, '-', '.' and '_': its state is kept under that name")
	} else if slices.ContainsFunc(earlier, func(e Route) bool { return e.Name == r.Name }) {
		v.add(key+".name", "another route has this name", r.Name, "give each route a name of its own")
	}
	if host, _, err := net.SplitHostPort(r.Target); err != nil || host == "" {
		v.add(key+".target", "not the address of a mail server", r.Target, "write host:port, for example archive.example.com:25")
	}
	oneOf(v, key+".tls.mode", r.TLS.Mode, TLSNone, TLSStartTLS, TLSRequired, TLSImplicit)
	oneOf(v, key+".send", r.Send, SendAll, SendOwn)
	oneOf(v, key+".from", r.From, FromNow, FromBeginning)
	for _, f := range []struct{ key, file string }{{".tls.ca", r.TLS.CA}, {".password_file", r.PasswordFile}} {
		if _, err := os.ReadFile(f.file); f.file != "" && err != nil {
			v.add(key+f.key, "cannot read the file: "+cause(err), f.file, "name a file that the node's user may read")
		}
	}
	if (r.User == "") != (r.PasswordFile == "") {
		v.add(key+".user", "a login needs both user and password_file", r.User, "give both, or neither")
	}
	if r.User != "" && r.TLS.Mode != TLSRequired && r.TLS.Mode != TLSImplicit {
		v.add(key+".tls.mode", "the password might be sent in plain text", string(r.TLS.Mode), "write required or implicit")
	}
	if r.MaxRetries < 0 {
		v.add(key+".max_retries", "negative", strconv.Itoa(r.MaxRetries), "use a number from 1, or 0 to try for ever")
	}
	if r.Concurrency < 1 || r.Concurrency > 100 {
		v.add(key+".concurrency", "not a number of connections from 1 to 100", strconv.Itoa(r.Concurrency), "use for example 4")
	}
}

func (v *validator) uniqueNames(connectors []Connector) {
	for i, k := range connectors {
		if first := slices.IndexFunc(connectors, func(o Connector) bool { return o.Name == k.Name }); first < i && k.Name != "" {
			v.add(fmt.Sprintf("connectors[%d].name", i), fmt.Sprintf("connectors[%d] has the same name", first), k.Name, "give each connector a name of its own")
		}
	}
}

// listener is an address that a configuration listens on, and its key.
type listener struct{ key, addr string }

func (c Config) listeners() []listener {
	all := []listener{{"chain", c.Chain}, {"gossip", c.Gossip}, {"raft", c.Raft}, {"http", c.HTTP}}
	if c.Role == RoleWitness {
		all = all[1:]
	}
	for i, k := range c.Connectors {
		key := fmt.Sprintf("connectors[%d].listen", i)
		if k.Name == smtpConnector && c.SMTP != "" {
			key = "smtp"
		}
		all = append(all, listener{key, k.Listen})
	}
	return all
}

// clashes finds listeners that would want the same port of the same address.
func (v *validator) clashes(c Config) {
	all := c.listeners()
	for i, later := range all {
		for _, earlier := range all[:i] {
			if overlap(earlier.addr, later.addr) {
				v.add(later.key, fmt.Sprintf("the same port as %s at %s", earlier.key, earlier.addr), later.addr, "give each listener an address or port of its own")
				break
			}
		}
	}
}

func overlap(a, b string) bool {
	if strings.HasPrefix(a, "unix:") {
		return a == b
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || wildcard(hostA) || wildcard(hostB)
}

func wildcard(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

func (v *validator) limits(c Config) {
	l := c.Limits
	if l.MaxMessageSize < 1 {
		v.add("limits.max_message_size", "no mail would fit", l.MaxMessageSize.String(), "use for example 150MiB")
	}
	if l.MaxRecipients < 100 {
		v.add("limits.max_recipients", "fewer than a server must take (RFC 5321 4.5.3.1.8)", strconv.Itoa(l.MaxRecipients), "use a number from 100")
	}
	for _, n := range []struct {
		key   string
		value int
	}{{"limits.max_connections", l.MaxConnections}, {"limits.max_connections_per_client", l.MaxConnectionsPerClient}} {
		if n.value < 0 {
			v.add(n.key, "negative", strconv.Itoa(n.value), "use a number from 1, or 0 for no limit")
		}
	}
	if l.RatePerClient < 0 {
		v.add("limits.rate_per_client", "negative", strconv.FormatFloat(l.RatePerClient, 'g', -1, 64), "use mails a minute, or 0 for no limit")
	}
	if l.MemoryInFlight < minMemory {
		v.add("limits.memory_in_flight", "too little for a few mails at once", l.MemoryInFlight.String(), "use "+minMemory.String()+" or more")
	}
	if c.Disk.MinFree < MiB {
		v.add("disk.min_free", "the database would die of a full disk", c.Disk.MinFree.String(), "use for example 1GiB")
	}
	for _, d := range []struct {
		key   string
		value Duration
		like  string
	}{
		{"limits.memory_wait", l.MemoryWait, "30s"},
		{"limits.idle_timeout", l.IdleTimeout, "5m"},
		{"limits.drain_timeout", l.DrainTimeout, "30s"},
		{"limits.leave_grace", l.LeaveGrace, "15s"},
		{"scrub.period", c.Scrub.Period, "7d"},
	} {
		if d.value <= 0 {
			v.add(d.key, "no time at all", d.value.String(), "use for example "+d.like)
		}
	}
}

func oneOf[T ~string](v *validator, key string, value T, allowed ...T) bool {
	if slices.Contains(allowed, value) {
		return true
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	v.add(key, "unknown value", string(value), "use "+strings.Join(names[:len(names)-1], ", ")+" or "+names[len(names)-1])
	return false
}

// cause strips the operation and path from a file error: the message that
// quotes it names them already.
func cause(err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err.Error()
	}
	return err.Error()
}
