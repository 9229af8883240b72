package lb

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// What a connection is given, in the words of all balancers.
const (
	// connectTime is for a TCP connection within a data centre; the next node is
	// tried then.
	connectTime = 2 * time.Second
	// mailIdle is longer than any pause that SMTP itself allows: a client waits
	// ten minutes for the answer to the end of DATA (RFC 5321 4.5.3.2.6).
	mailIdle = 11 * time.Minute
	// webIdle is for answers that are made while one waits.
	webIdle = 15 * time.Minute
	// oldWorkers is how long a reload leaves sessions to the old processes: a mail
	// that is being sent is never cut off by a reload.
	oldWorkers = 15 * time.Minute
	// restTime is how long a node is left alone that did not take a connection.
	restTime = 5 * time.Second
)

// Part is what of nginx's configuration is rendered.
type Part string

// The parts; those for an include have the name of the place that includes them.
const (
	Complete   Part = "complete" // a whole nginx.conf
	MainPart   Part = "main"     // a stream block, for the main level
	StreamPart Part = "stream"   // what is in it, for a stream block that exists
	HTTPPart   Part = "http"     // for the http block, such as Debian's conf.d
)

// Nginx is the nginx that will read the file, and where a complete file puts
// what it writes.
type Nginx struct {
	Version Version
	// StreamModule is the file of the dynamic stream module; empty: it is built in.
	StreamModule string
	// HTTP2 is offered to clients with TLS.
	HTTP2 bool
	// User of the workers; empty: that of the master.
	User string
	// PID, ErrorLog (a file or "stderr") and AccessLog (a file or "off") of a
	// complete file; StreamPart and HTTPPart use AccessLog too.
	PID, ErrorLog, AccessLog string
	// Temp is a directory for what does not fit memory; empty: nginx's own.
	Temp string
	// Foreground keeps nginx from becoming a daemon.
	Foreground bool
}

// DebianNginx is that of Debian 12, with libnginx-mod-stream.
func DebianNginx() Nginx {
	return Nginx{
		Version: Version{1, 22, 1}, StreamModule: "/usr/lib/nginx/modules/ngx_stream_module.so", HTTP2: true,
		User: "www-data", PID: "/run/nginx.pid",
		ErrorLog: "/var/log/nginx/error.log", AccessLog: "/var/log/nginx/chainmail.log",
	}
}

// Version is nginx's.
type Version [3]int

var versionPattern = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})\.(\d{1,4})$`)

// ParseVersion reads a version such as 1.22.1.
func ParseVersion(text string) (v Version, err error) {
	m := versionPattern.FindStringSubmatch(text)
	if m == nil {
		return v, fmt.Errorf("%q is no version of nginx: write it as 1.22.1", text)
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits
	}
	return v, nil
}

// String is major.minor.patch.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

// atLeast compares.
func (v Version) atLeast(major, minor, patch int) bool {
	for i, want := range []int{major, minor, patch} {
		if v[i] != want {
			return v[i] > want
		}
	}
	return true
}

// sticky: the directive is in the free nginx from here on.
func (v Version) sticky() bool { return v.atLeast(1, 29, 6) }

// Validate says what is wrong.
func (n Nginx) Validate() error {
	if !n.Version.atLeast(1, 18, 0) {
		return fmt.Errorf("nginx %s is too old: use 1.18 or later", n.Version)
	}
	for _, f := range [][2]string{{"--stream-module", n.StreamModule}, {"the PID file", n.PID}, {"the folder for temporary files", n.Temp}} {
		if err := checkFile(f[0], f[1]); err != nil {
			return err
		}
	}
	if n.ErrorLog != "stderr" {
		if err := checkFile("--error-log", n.ErrorLog); err != nil {
			return err
		}
	}
	if n.AccessLog != "off" {
		if err := checkFile("--access-log", n.AccessLog); err != nil {
			return err
		}
	}
	if n.User != "" && !userPattern.MatchString(n.User) {
		return fmt.Errorf("--user is %q: name a user of this machine", n.User)
	}
	return nil
}

var userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

//go:embed templates
var templateFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"seconds": func(d time.Duration) string { return strconv.Itoa(int(d/time.Second)) + "s" },
	"quote":   strconv.Quote, // of names that checkFile has seen
	"regexp":  regexp.QuoteMeta,
	"bracketed": func(host string) string { // as HAProxy wants an IPv6 address without a port
		if strings.Contains(host, ":") {
			return "[" + host + "]"
		}
		return host
	},
}).ParseFS(templateFiles, "templates/*.tmpl"))

func execute(name string, data any) (string, error) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return "", err
	}
	return b.String(), nil
}

// nginxData is what the templates see.
type nginxData struct {
	Cluster
	Layout
	Nginx
	NodeName, SessionCookie, NodeCookie    string
	Connect, MailIdle, WebIdle, OldWorkers time.Duration
}

// nodeServer is a node in an upstream block.
type nodeServer struct {
	Name string
	Address
	Out    Out
	Backup bool // only when the others do not take the connection
	Only   bool // there is no other: then it is not left alone after a failure
}

// Words are what follows the address.
func (s nodeServer) Words() string {
	words := fmt.Sprintf("max_fails=1 fail_timeout=%v", restTime)
	switch {
	case s.Out != In:
		words = "down"
	case s.Only:
		words = "max_fails=0"
	}
	if s.Backup {
		words += " backup"
	}
	return words
}

// Comment names the node.
func (s nodeServer) Comment() string {
	if s.Out != In {
		return s.Name + ": " + string(s.Out)
	}
	return s.Name
}

// pool is an upstream block.
type pool struct {
	Name    string
	Servers []nodeServer
}

// servers are the nodes of one service.
func servers(nodes []Node, address func(Node) Address, out func(Node) Out) []nodeServer {
	list := make([]nodeServer, 0, len(nodes))
	for _, n := range nodes {
		list = append(list, nodeServer{Name: n.Name, Address: address(n), Out: out(n)})
	}
	in := func(s nodeServer) bool { return s.Out == In }
	if i := slices.IndexFunc(list, in); i >= 0 && !slices.ContainsFunc(list[i+1:], in) {
		list[i].Only = true
	}
	return list
}

// SMTPServers, SMTPSServers and HTTPServers are the nodes of the three services.
func (d nginxData) SMTPServers() []nodeServer {
	return servers(d.Nodes, func(n Node) Address { return n.SMTP }, func(n Node) Out { return n.Mail })
}

// SMTPSServers: see SMTPServers.
func (d nginxData) SMTPSServers() []nodeServer {
	return servers(d.Nodes, func(n Node) Address { return n.SMTP.at(d.SMTPSPort) }, func(n Node) Out { return n.Mail })
}

// HTTPServers: see SMTPServers.
func (d nginxData) HTTPServers() []nodeServer {
	return servers(d.Nodes, func(n Node) Address { return n.HTTP }, func(n Node) Out { return n.Web })
}

// Pools are one upstream for each node that is in, with the others behind it:
// how an nginx without "sticky" sends a client to the node that knows it.
func (d nginxData) Pools() (pools []pool) {
	if d.Sticky() || len(d.Nodes) < 2 {
		return nil
	}
	for _, own := range d.HTTPServers() {
		if own.Out != In {
			continue
		}
		p := pool{Name: own.Name, Servers: []nodeServer{own}}
		for _, other := range d.HTTPServers() {
			if other.Name != own.Name {
				other.Backup = true
				p.Servers = append(p.Servers, other)
			}
		}
		pools = append(pools, p)
	}
	return pools
}

// Sticky reports whether nginx has the directive.
func (d nginxData) Sticky() bool { return d.Version.sticky() }

// HTTP2Directive reports whether it is a directive of its own and no more a word
// of listen.
func (d nginxData) HTTP2Directive() bool { return d.HTTP2 && d.Version.atLeast(1, 25, 1) }

// ListenWords are what follows an address of HTTP.
func (d nginxData) ListenWords() string {
	switch {
	case d.HTTPCert == "":
		return ""
	case d.HTTP2 && !d.HTTP2Directive():
		return " ssl http2"
	default:
		return " ssl"
	}
}

// ClientKey is the file of HTTPCert's key.
func (d nginxData) ClientKey() string {
	if d.HTTPKey != "" {
		return d.HTTPKey
	}
	return d.HTTPCert
}

// IsPassthrough reports the mode.
func (d nginxData) IsPassthrough() bool { return d.HTTPMode == Passthrough }

// HasStream reports whether there is anything for the stream module.
func (d nginxData) HasStream() bool {
	return len(d.SMTP)+len(d.SMTPS) > 0 || d.HasPassthrough()
}

// HasPassthrough reports whether HTTP is a stream.
func (d nginxData) HasPassthrough() bool { return len(d.HTTP) > 0 && d.IsPassthrough() }

// HasHTTP reports whether there is anything for the http block.
func (d nginxData) HasHTTP() bool { return d.Verifies() }

// Validate says what is wrong with the name of a part.
func (p Part) Validate() error {
	switch p {
	case Complete, MainPart, StreamPart, HTTPPart:
		return nil
	}
	return fmt.Errorf("--include is %q: use %s, %s or %s", p, MainPart, StreamPart, HTTPPart)
}

// Verifies reports whether the part names the cluster's CA in this layout.
func (p Part) Verifies(l Layout) bool { return l.Verifies() && (p == Complete || p == HTTPPart) }

// RenderNginx is nginx's configuration. A cluster in which no node is in gets all
// of them in.
func RenderNginx(c Cluster, l Layout, n Nginx, part Part) ([]byte, error) {
	if err := errors.Join(l.Validate(), n.Validate()); err != nil {
		return nil, err
	}
	if len(c.Nodes) == 0 {
		return nil, ErrNobody
	}
	d := nginxData{
		Cluster: c.kept(), Layout: l, Nginx: n,
		NodeName: NodeName, SessionCookie: SessionCookie, NodeCookie: NodeCookie,
		Connect: connectTime, MailIdle: mailIdle, WebIdle: webIdle, OldWorkers: oldWorkers,
	}
	var body string
	var err error
	switch part {
	case StreamPart:
		if !d.HasStream() {
			return nil, errors.New("nothing of this layout belongs into a stream block: give --smtp an address")
		}
		body, err = execute("nginx-stream.tmpl", d)
	case HTTPPart:
		if !d.HasHTTP() {
			return nil, errors.New("nothing of this layout belongs into an http block: give --http an address, and --http-mode proxy")
		}
		body, err = execute("nginx-http.tmpl", d)
	case MainPart:
		if !d.HasStream() {
			return nil, errors.New("nothing of this layout belongs to the main level: give --smtp an address")
		}
		body, err = block("stream", "nginx-stream.tmpl", d)
	case Complete:
		body, err = completeNginx(d)
	default:
		return nil, part.Validate()
	}
	if err != nil {
		return nil, err
	}
	return []byte(header(c, "#") + "\n" + strings.TrimRight(body, "\n") + "\n"), nil
}

func completeNginx(d nginxData) (string, error) {
	text, err := execute("nginx-main.tmpl", d)
	if err != nil {
		return "", err
	}
	for _, b := range []struct {
		wanted         bool
		name, template string
	}{{d.HasStream(), "stream", "nginx-stream.tmpl"}, {d.HasHTTP(), "http", "nginx-http.tmpl"}} {
		if !b.wanted {
			continue
		}
		inner, err := block(b.name, b.template, d)
		if err != nil {
			return "", err
		}
		text += "\n" + inner
	}
	return text, nil
}

// block is a template's text within name { }.
func block(name, file string, d nginxData) (string, error) {
	inner, err := execute(file, d)
	if err != nil {
		return "", err
	}
	if name == "http" && d.Temp != "" {
		paths, err := execute("nginx-temp.tmpl", d)
		if err != nil {
			return "", err
		}
		inner = paths + "\n" + inner
	}
	var b strings.Builder
	b.WriteString(name + " {\n")
	for line := range strings.Lines(strings.TrimRight(inner, "\n") + "\n") {
		if line != "\n" {
			line = "\t" + line
		}
		b.WriteString(line)
	}
	b.WriteString("}\n")
	return b.String(), nil
}
