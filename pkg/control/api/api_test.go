package api_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted returns what the test sets and records its calls.
type scripted struct {
	asked  []any
	err    error
	panics bool
	wait   bool // until the request ends
}

func (s *scripted) note(ctx context.Context, asked ...any) error {
	s.asked = asked
	if s.panics {
		panic("scripted")
	}
	if s.wait {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.err
}

var (
	began  = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	anna   = api.Agent{ID: "a1", Name: "anna", Addresses: []string{"10.0.0.1"}, Exceptions: []string{}, State: api.StateRunning, Started: began, ClockOffset: -time.Second, Revision: 7}
	shop   = api.Group{ID: "g-shop000000", Name: "shop", Agents: 1, Revision: 9, Created: began}
	config = api.Configuration{GroupID: shop.ID, GroupName: "shop", Revision: 9, YAML: "a: 1\n"}
	change = api.Update{GroupID: shop.ID, GroupName: "shop", Revision: 10, Changes: []agentconfig.Change{{Key: "k", Old: "<1>", New: "2"}}}
)

func (s *scripted) Agents(ctx context.Context) ([]api.Agent, error) {
	return []api.Agent{anna}, s.note(ctx, "agents")
}

func (s *scripted) Agent(ctx context.Context, name string) (api.Agent, error) {
	return anna, s.note(ctx, "agent", name)
}

func (s *scripted) DeleteAgent(ctx context.Context, name string) error {
	return s.note(ctx, "delete agent", name)
}

func (s *scripted) Groups(ctx context.Context) ([]api.Group, error) {
	return nil, s.note(ctx, "groups")
}

func (s *scripted) CreateGroup(ctx context.Context, name, id string) (api.Group, error) {
	return shop, s.note(ctx, "create group", name, id)
}

func (s *scripted) DeleteGroup(ctx context.Context, name string) error {
	return s.note(ctx, "delete group", name)
}

func (s *scripted) Configurations(ctx context.Context) ([]api.Configuration, error) {
	return []api.Configuration{config}, s.note(ctx, "configurations")
}

func (s *scripted) Configuration(ctx context.Context, group string) (api.Configuration, error) {
	return config, s.note(ctx, "configuration", group)
}

func (s *scripted) UpdateConfiguration(ctx context.Context, group string, text []byte, opts api.UpdateOptions) (api.Update, error) {
	return change, s.note(ctx, "update", group, string(text), opts)
}

func (s *scripted) DeleteConfiguration(ctx context.Context, group string) (api.Update, error) {
	return api.Update{}, s.note(ctx, "delete configuration", group)
}

func serve(t *testing.T, s api.Service, opts api.HandlerOptions) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/v1/", api.NewHandler(s, opts))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

func dial(t *testing.T, opts api.ClientOptions) *api.Client {
	t.Helper()
	client := api.NewClient(opts)
	t.Cleanup(client.Close)
	return client
}

// writing returns tokens of the role write, and the token r of the role read beside them.
func writing(t *testing.T, values ...string) *tokens.Set {
	t.Helper()
	values = slices.DeleteFunc(values, func(v string) bool { return v == "" })
	if len(values) == 0 {
		return nil
	}
	s, err := tokens.Open(nil, tokens.List{Key: "w", Values: values, Label: api.RoleWrite}, tokens.List{Key: "r", Values: []string{"r"}, Label: api.RoleRead})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A token for reading reads all, and one for writing does so too.
func TestBothRolesRead(t *testing.T) {
	url := serve(t, &scripted{}, api.HandlerOptions{Tokens: writing(t, "s", "next")})
	for _, token := range []string{"r", "s", "next"} {
		for _, path := range []string{"/v1/agents", "/v1/agents/x", "/v1/agent-groups", "/v1/agent-group-configs", "/v1/agent-group-configs/x"} {
			if res, body := send(t, http.MethodGet, url+path, http.Header{"Authorization": {"bearer " + token}}, nil); res.StatusCode != http.StatusOK {
				t.Errorf("GET %s by %q: %d %s", path, token, res.StatusCode, body)
			}
		}
	}
}

// Client passes every request to the service unchanged and returns its response
// unchanged.
func TestClientIsTheServiceBehindTheHandler(t *testing.T) {
	script := &scripted{}
	client := dial(t, api.ClientOptions{BaseURL: serve(t, script, api.HandlerOptions{Tokens: writing(t, "s")}) + "/", Token: "s"})
	update := func(opts api.UpdateOptions) func(context.Context, api.Service) (any, error) {
		return func(ctx context.Context, s api.Service) (any, error) {
			return s.UpdateConfiguration(ctx, "shop", []byte("ü: [\x00"), opts)
		}
	}
	// A name with everything that could confuse a path.
	const name = "a b/c?d=e#f%2F..é"
	tests := map[string]func(context.Context, api.Service) (any, error){
		"agents":       func(ctx context.Context, s api.Service) (any, error) { return s.Agents(ctx) },
		"agent":        func(ctx context.Context, s api.Service) (any, error) { return s.Agent(ctx, name) },
		"delete agent": func(ctx context.Context, s api.Service) (any, error) { return nil, s.DeleteAgent(ctx, name) },
		"create group": func(ctx context.Context, s api.Service) (any, error) {
			return s.CreateGroup(ctx, name, "g-1")
		},
		"delete group":   func(ctx context.Context, s api.Service) (any, error) { return nil, s.DeleteGroup(ctx, name) },
		"configurations": func(ctx context.Context, s api.Service) (any, error) { return s.Configurations(ctx) },
		"configuration":  func(ctx context.Context, s api.Service) (any, error) { return s.Configuration(ctx, name) },
		"merge":          update(api.UpdateOptions{}),
		"replace":        update(api.UpdateOptions{Replace: true}),
		"create, dry":    update(api.UpdateOptions{Create: true, DryRun: true}),
	}
	for name, call := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := call(t.Context(), client)
			if err != nil {
				t.Fatal(err)
			}
			asked := script.asked
			want, _ := call(t.Context(), script)
			if diff := cmp.Diff(script.asked, asked); diff != "" {
				t.Errorf("calls (-directly +through the network):\n%s", diff)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("results (-directly +through the network):\n%s", diff)
			}
		})
	}
}

func TestEmptyListsAreListsInJSON(t *testing.T) {
	url := serve(t, &scripted{}, api.HandlerOptions{})
	for path, want := range map[string]string{"/v1/agent-groups": "[]\n"} {
		if _, body := send(t, http.MethodGet, url+path, nil, nil); body != want {
			t.Errorf("%s: %q, want %q", path, body, want)
		}
	}
	if _, body := send(t, http.MethodDelete, url+"/v1/agent-group-configs/x", nil, nil); !strings.Contains(body, `"changes":[]`) {
		t.Errorf("no empty list of changes: %s", body)
	}
}

func TestProblemsSurviveTheNetwork(t *testing.T) {
	_, _, wrong := agentconfig.Parse([]byte("inputs:\n  flow: 1\nbogus: 1\n"))
	tests := map[string]struct {
		err  error
		want *api.Problem
	}{
		"not found":   {err: api.NotFound("no agent %q", "x"), want: &api.Problem{Status: 404, Code: "not_found", Message: `no agent "x"`}},
		"conflict":    {err: api.Conflict("there"), want: &api.Problem{Status: 409, Code: "conflict", Message: "there"}},
		"unavailable": {err: api.Unavailable("no broker: %v", io.EOF), want: &api.Problem{Status: 503, Code: "unavailable", Message: "no broker: EOF"}},
		"a wrong text": {err: api.Invalid(wrong), want: &api.Problem{
			Status: 400, Code: "invalid", Message: "invalid configuration, nothing was changed",
			Problems: []agentconfig.Problem{
				{Line: 2, Key: "inputs.flow", Text: "the number 1 where a section of keys is expected"},
				{Line: 3, Key: "bogus", Text: "unknown key"},
			},
		}},
		"an unclassified error":        {err: io.ErrUnexpectedEOF, want: &api.Problem{Status: 500, Code: "internal", Message: "unexpected EOF"}},
		"a service that took too long": {err: context.DeadlineExceeded, want: &api.Problem{Status: 503, Code: "unavailable", Message: "no response within 20s: context deadline exceeded"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			client := dial(t, api.ClientOptions{BaseURL: serve(t, &scripted{err: tc.err}, api.HandlerOptions{})})
			_, err := client.Agents(t.Context())
			var got *api.Problem
			if !errors.As(err, &got) {
				t.Fatalf("%v is not a Problem", err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if got, want := api.Invalid(wrong).Error(), "invalid configuration, nothing was changed\n"+wrong.Error(); got != want {
		t.Errorf("as text: %q, want %q", got, want)
	}
}

func send(t *testing.T, method, url string, header http.Header, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

func TestHandlerRefuses(t *testing.T) {
	tests := map[string]struct {
		method, path string
		header       http.Header
		body         io.Reader
		token        string
		status       int
		says         string
		allow        string
	}{
		"a path that is none":                  {method: "GET", path: "/v1/agent", status: 404, says: "unknown path; the API is /v1/agents"},
		"an empty name":                        {method: "GET", path: "/v1/agents/", status: 404, says: "unknown path"},
		"another method":                       {method: "PUT", path: "/v1/agent-groups", status: 405, says: "PUT is not allowed here, only GET, POST", allow: "GET, POST"},
		"no token":                             {method: "GET", path: "/v1/agents", token: "s", status: 401, says: "the token is missing"},
		"the wrong token":                      {method: "GET", path: "/v1/agents", token: "s", header: http.Header{"Authorization": {"Bearer t"}}, status: 401, says: "missing or wrong"},
		"a path that is none, without a token": {method: "GET", path: "/v1/x", token: "s", status: 401, says: "the token is missing"},
		"a change by a token for reading":      {method: "PUT", path: "/v1/agent-group-configs/x", token: "s", header: http.Header{"Authorization": {"Bearer r"}}, status: 403, says: "change nothing: use control.token"},
		"a dry run by a token for reading":     {method: "PUT", path: "/v1/agent-group-configs/x?dry_run=true", token: "s", header: http.Header{"Authorization": {"Bearer r"}}, status: 403, says: "change nothing"},
		"a deletion by a token for reading":    {method: "DELETE", path: "/v1/agents/x", token: "s", header: http.Header{"Authorization": {"Bearer r"}}, status: 403, says: "change nothing"},
		"a token of another scheme":            {method: "GET", path: "/v1/agents", token: "s", header: http.Header{"Authorization": {"Basic s"}}, status: 401, says: "missing or wrong"},
		"another site's page":                  {method: "POST", path: "/v1/agent-groups", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, status: 403, says: "cross-site"},
		"a group that is no JSON":              {method: "POST", path: "/v1/agent-groups", body: strings.NewReader("shop"), status: 400, says: "not a group as JSON"},
		"a group with more":                    {method: "POST", path: "/v1/agent-groups", body: strings.NewReader(`{"namee":"x"}`), status: 400, says: `unknown field \"namee\"`},
		"a large body":                         {method: "PUT", path: "/v1/agent-group-configs/x", body: strings.NewReader(strings.Repeat("#", agentconfig.MaxTextBytes+1)), status: 413, says: "larger than 1048576 bytes"},
		"an unknown parameter":                 {method: "PUT", path: "/v1/agent-group-configs/x?dryrun=true", status: 400, says: "the only parameter is dry_run"},
		"a parameter without sense":            {method: "PUT", path: "/v1/agent-group-configs/x?dry_run=maybe", status: 400, says: "neither true nor false"},
		"a dry run of a deletion":              {method: "DELETE", path: "/v1/agent-group-configs/x?dry_run=true", status: 400, says: "takes no parameters"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			script := &scripted{}
			res, body := send(t, tc.method, serve(t, script, api.HandlerOptions{Tokens: writing(t, tc.token)})+tc.path, tc.header, tc.body)
			if res.StatusCode != tc.status || !strings.Contains(body, tc.says) || !strings.Contains(body, `"code":"`) {
				t.Errorf("%d %s, want %d with %q", res.StatusCode, body, tc.status, tc.says)
			}
			if got := res.Header.Get("Allow"); got != tc.allow {
				t.Errorf("Allow: %q, want %q", got, tc.allow)
			}
			if got := res.Header.Get("Content-Type"); got != "application/json" {
				t.Errorf("Content-Type: %q", got)
			}
			if script.asked != nil {
				t.Errorf("the service was called: %v", script.asked)
			}
		})
	}
}

func TestTruncatedBodyChangesNothing(t *testing.T) {
	script := &scripted{}
	req := httptest.NewRequest(http.MethodPut, "/v1/agent-group-configs/x", iotest.ErrReader(io.ErrUnexpectedEOF))
	w := httptest.NewRecorder()
	api.NewHandler(script, api.HandlerOptions{AnonymousWrites: true}).ServeHTTP(w, req)
	if w.Code != http.StatusBadRequest || script.asked != nil {
		t.Errorf("%d %s, asked %v", w.Code, w.Body, script.asked)
	}
}

func TestPanicAffectsOneRequest(t *testing.T) {
	script := &scripted{panics: true}
	client := dial(t, api.ClientOptions{BaseURL: serve(t, script, api.HandlerOptions{})})
	_, err := client.Agents(t.Context())
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != http.StatusInternalServerError {
		t.Errorf("%v, want a Problem with status 500", err)
	}
	script.panics = false
	if _, err := client.Agents(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestClientErrorsNameTheCause(t *testing.T) {
	somebodyElse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/agents/moved":
			http.Redirect(w, r, "/v1/agents", http.StatusFound)
		case "/v1/agents/teapot":
			http.Error(w, "<html>\n short and stout", http.StatusTeapot)
		default:
			_, _ = io.WriteString(w, "<html>")
		}
	}))
	t.Cleanup(somebodyElse.Close)
	slow := serve(t, &scripted{wait: true}, api.HandlerOptions{})
	closed := httptest.NewServer(nil)
	closed.Close()

	tests := map[string]struct {
		opts api.ClientOptions
		name string
		says string
	}{
		"connection refused":       {opts: api.ClientOptions{BaseURL: closed.URL}, name: "x", says: "ask " + closed.URL + ": dial tcp"},
		"no response":              {opts: api.ClientOptions{BaseURL: slow, Timeout: time.Millisecond}, name: "x", says: "no response in time"},
		"a redirect":               {opts: api.ClientOptions{BaseURL: somebodyElse.URL}, name: "moved", says: "responded with status 302, not like the API"},
		"an error of no API":       {opts: api.ClientOptions{BaseURL: somebodyElse.URL}, name: "teapot", says: `responded with status 418, not like the API of a metaflow-server: "<html> short and stout"`},
		"a page":                   {opts: api.ClientOptions{BaseURL: somebodyElse.URL}, name: "x", says: "does not respond like the API"},
		"no name":                  {opts: api.ClientOptions{BaseURL: somebodyElse.URL}, name: "", says: `"" is not a name`},
		"a name that is a step up": {opts: api.ClientOptions{BaseURL: somebodyElse.URL}, name: "..", says: `".." is not a name`},
		"no URL":                   {opts: api.ClientOptions{BaseURL: "http://[::1"}, name: "x", says: "missing ']'"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := dial(t, tc.opts).Agent(t.Context(), tc.name)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want %q", err, tc.says)
			}
		})
	}
}
