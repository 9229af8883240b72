package httpd_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"chainmail/node/api"
)

// description is the part of an OpenAPI document that the tests read.
type description struct {
	OpenAPI    string `json:"openapi"`
	Paths      map[string]map[string]operation
	Components struct {
		Responses map[string]response
		Schemas   map[string]struct {
			Properties map[string]any
			Required   []string
		}
	}

	compiler *jsonschema.Compiler
	mu       sync.Mutex
	seen     map[string]bool // "GET /path 200"
}

type operation struct {
	OperationID string
	Summary     string
	Security    *[]any
	Parameters  []struct{ Name, In string }
	Responses   map[string]response
}

type response struct {
	Ref     string `json:"$ref"`
	Content map[string]struct {
		Schema map[string]any
	}
}

const documentURL = "https://chainmail.invalid/openapi.json"

var loadDescription = sync.OnceValues(func() (*description, error) {
	b, err := os.ReadFile("openapi.json")
	if err != nil {
		return nil, err
	}
	d := &description{seen: map[string]bool{}, compiler: jsonschema.NewCompiler()}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	d.compiler.DefaultDraft(jsonschema.Draft2020)
	d.compiler.AssertFormat()
	return d, d.compiler.AddResource(documentURL, doc)
})

func described(t *testing.T) *description {
	t.Helper()
	d, err := loadDescription()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestMain fails the whole run when an answer is described that no test saw.
func TestMain(m *testing.M) {
	code := m.Run()
	if d, err := loadDescription(); code == 0 && err == nil && flag.Lookup("test.run").Value.String() == "" {
		for path, ops := range d.Paths {
			for method, op := range ops {
				for status := range op.Responses {
					if name := strings.ToUpper(method) + " " + path + " " + status; !d.seen[name] {
						fmt.Println("FAIL: openapi.json describes an answer that no test has seen:", name)
						code = 1
					}
				}
			}
		}
	}
	os.Exit(code)
}

// find returns the operation for a request, and its path template.
func (d *description) find(method, path string) (string, operation, bool) {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	for template, ops := range d.Paths {
		pattern := "^" + regexp.MustCompile(`\\\{[a-z]+\\\}`).ReplaceAllString(regexp.QuoteMeta(template), "[^/]+") + "$"
		if ok, _ := regexp.MatchString(pattern, path); !ok {
			continue
		}
		if op, ok := ops[strings.ToLower(method)]; ok {
			return template, op, true
		}
	}
	return "", operation{}, false
}

// check validates an answer against the description.
func (d *description) check(t *testing.T, r reply) {
	t.Helper()
	method, path, code := r.Request.Method, r.Request.URL.Path, fmt.Sprint(r.StatusCode)
	name := method + " " + path + " " + code
	template, op, ok := d.find(method, path)
	if !ok {
		if r.StatusCode != http.StatusNotFound && r.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: not described", name)
		}
		d.validate(t, name, "Error", r.body)
		return
	}
	resp, ok := op.Responses[code]
	if !ok {
		t.Errorf("%s: the description has no such status", name)
		return
	}
	d.mu.Lock()
	d.seen[method+" "+template+" "+code] = true
	d.mu.Unlock()
	if resp.Ref != "" {
		resp = d.Components.Responses[strings.TrimPrefix(resp.Ref, "#/components/responses/")]
	}
	if method == http.MethodHead || len(r.body) == 0 && len(resp.Content) == 0 {
		return
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	content, ok := resp.Content[kind]
	if !ok {
		t.Errorf("%s: Content-Type is %q, described are %v", name, kind, slices.Collect(maps.Keys(resp.Content)))
		return
	}
	ref, _ := content.Schema["$ref"].(string)
	if ref == "" {
		return // not JSON, or the description itself
	}
	bodies := [][]byte{r.body}
	if kind == "application/x-ndjson" {
		bodies = bytes.Split(bytes.TrimSuffix(r.body, []byte("\n")), []byte("\n"))
	}
	for _, b := range bodies {
		d.validate(t, name, strings.TrimPrefix(ref, "#/components/schemas/"), b)
	}
}

func (d *description) validate(t *testing.T, name, schema string, body []byte) {
	t.Helper()
	d.mu.Lock()
	s, err := d.compiler.Compile(documentURL + "#/components/schemas/" + schema)
	d.mu.Unlock()
	if err != nil {
		t.Fatalf("schema %s: %v", schema, err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Errorf("%s: %v: %s", name, err, body)
		return
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%s: %v: %s", name, err, body)
	}
}

// TestRoutesAreDescribed holds routes and description to each other: paths,
// methods, parameters and who may call them.
func TestRoutesAreDescribed(t *testing.T) {
	n, d := start(t, nil), described(t)
	if d.OpenAPI != "3.1.0" {
		t.Errorf("version %q", d.OpenAPI)
	}
	described := map[string]operation{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			described[strings.ToUpper(method)+" "+path] = op
		}
	}
	for _, rt := range n.server.RouteInfos() {
		op, ok := described[rt.Pattern]
		delete(described, rt.Pattern)
		if !ok {
			t.Errorf("%s is served and not described", rt.Pattern)
			continue
		}
		var query, inPath []string
		for _, p := range op.Parameters {
			switch p.In {
			case "query":
				query = append(query, p.Name)
			case "path":
				inPath = append(inPath, "{"+p.Name+"}")
			}
		}
		if !slices.Equal(slices.Sorted(slices.Values(query)), slices.Sorted(slices.Values(rt.Query))) {
			t.Errorf("%s: parameters %v are described, %v are known", rt.Pattern, query, rt.Query)
		}
		if want := regexp.MustCompile(`\{[a-z]+\}`).FindAllString(rt.Pattern, -1); !slices.Equal(inPath, want) {
			t.Errorf("%s: path parameters %v are described", rt.Pattern, inPath)
		}
		if noSecurity := op.Security != nil && len(*op.Security) == 0; noSecurity != rt.Open {
			t.Errorf("%s: described as open: %v, is: %v", rt.Pattern, noSecurity, rt.Open)
		}
		if says := strings.Contains(op.Summary, "Admin socket only"); says != rt.Admin {
			t.Errorf("%s: described as for the admin socket: %v, is: %v", rt.Pattern, says, rt.Admin)
		}
		if says := strings.Contains(op.Summary, "Nodes only"); says != rt.Nodes {
			t.Errorf("%s: described as for nodes: %v, is: %v", rt.Pattern, says, rt.Nodes)
		}
	}
	for pattern := range described {
		t.Errorf("%s is described and not served", pattern)
	}
}

// TestTypesAreDescribed holds the Go types and the schemas to each other.
func TestTypesAreDescribed(t *testing.T) {
	d := described(t)
	left := maps.Clone(d.Components.Schemas)
	for _, v := range []any{
		api.Message{},
		api.Header{},
		api.Receipt{},
		api.Journal{},
		api.JournalRecipient{},
		api.MessageList{},
		api.Accepted{},
		api.Status{},
		api.Disk{},
		api.Memory{},
		api.Scrub{},
		api.Finding{},
		api.Conflict{},
		api.Listener{},
		api.VerifyEvent{},
		api.Token{},
		api.TokenRequest{},
		api.TokenList{},
		api.Health{},
		api.Sync{},
		api.Error{},
		api.Cluster{},
		api.Policies{},
		api.PolicyChange{},
		api.Member{},
		api.Backlog{},
		api.Link{},
		api.SelfReport{},
		api.LogHeld{},
		api.JoinRequest{},
		api.JoinToken{},
		api.JoinTokenRequest{},
		api.MoveRequest{},
		api.Changed{},
		api.SafeToStop{},
		api.Route{},
		api.RouteList{},
		api.Parked{},
		api.ParkedList{},
		api.RetryRequest{},
		api.Retried{},
		api.Segment{},
		api.ReceiptDigest{},
		api.Digests{},
		api.ClusterVerifyEvent{},
	} {
		typ := reflect.TypeOf(v)
		schema, ok := left[typ.Name()]
		delete(left, typ.Name())
		if !ok {
			t.Errorf("api.%s is not described", typ.Name())
			continue
		}
		var fields, required []string
		for _, f := range reflect.VisibleFields(typ) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields = append(fields, name)
			if !strings.Contains(options, "omit") {
				required = append(required, name)
			}
		}
		slices.Sort(fields)
		slices.Sort(required)
		if got := slices.Sorted(maps.Keys(schema.Properties)); !slices.Equal(got, fields) {
			t.Errorf("%s: properties %v, fields %v", typ.Name(), got, fields)
		}
		if got := slices.Sorted(slices.Values(schema.Required)); !slices.Equal(got, required) {
			t.Errorf("%s: required %v, always there %v", typ.Name(), got, required)
		}
	}
	for name := range left {
		t.Errorf("the schema %s has no type in package api", name)
	}
}

func TestDescriptionIsServed(t *testing.T) {
	n := start(t, nil)
	want, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if got := n.public("GET", "/api/v1/openapi.json", "").want(http.StatusOK); !bytes.Equal(got.body, want) {
		t.Error("what is served is not openapi.json")
	}
}

// TestEveryRouteGuards asks every route without a token, with the rights of a
// token, and with a parameter that it does not know.
func TestEveryRouteGuards(t *testing.T) {
	n := start(t, nil)
	for _, rt := range n.server.RouteInfos() {
		method, path, _ := strings.Cut(rt.Pattern, " ")
		path = strings.NewReplacer("{id}", "abcd1234", "{name}", "b").Replace(path)
		switch {
		case rt.Open:
		case rt.Nodes:
			for _, header := range []string{"", "Bearer " + n.token} {
				n.public(method, path, "", "Authorization", header).refused(http.StatusForbidden, "nodes of the cluster", "chainmail/1")
			}
		default:
			r := n.public(method, path, "")
			r.refused(http.StatusUnauthorized, "token")
			if r.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s: no WWW-Authenticate", rt.Pattern)
			}
		}
		if rt.Admin {
			n.public(method, path, "", "Authorization", "Bearer "+n.token).refused(http.StatusForbidden, "administrator", "admin socket")
		}
		n.admin(method, path+"?limmit=3", "").refused(http.StatusBadRequest, `unknown parameter "limmit"`)
		if rt.Open {
			n.public(method, path+"?%zz", "").refused(http.StatusBadRequest)
		}
	}
}
