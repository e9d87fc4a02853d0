package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/agentconfig"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// Paths of the API, shared by handler and client.
const (
	root        = "/v1/"
	agentsPath  = root + "agents"
	groupsPath  = root + "agent-groups"
	configsPath = root + "agent-group-configs"
)

const (
	// bodyTimeout allows a megabyte over a slow line.
	bodyTimeout = 10 * time.Second
	// serviceTimeout is shorter than metaflow-ctl's timeout, so that the user sees the
	// cause.
	serviceTimeout = 20 * time.Second
	// answerTimeout allows the largest response over a slow line, including the timeouts
	// above.
	answerTimeout = 60 * time.Second
	// listsAtOnce suits a few operators and a script.
	listsAtOnce = 4
)

// HandlerOptions are set by code. The zero value is usable.
type HandlerOptions struct {
	Logger *slog.Logger // nil discards
	// Tokens are those that requests need, with RoleRead or RoleWrite as label. If nil, no
	// token is required: everybody may read, and only the server's own host may make
	// changes.
	Tokens *tokens.Set
	// AnonymousWrites allows changes from everybody when Tokens is nil.
	AnonymousWrites bool
}

// Roles of tokens.
const (
	RoleRead  = "read"
	RoleWrite = "write" // reads too
)

// NewHandler returns a handler for everything under /v1/. It holds no resources. It
// refuses cross-site requests of browsers, so that an API without a token is not open to
// every page that an operator visits.
func NewHandler(s Service, opts HandlerOptions) http.Handler {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	hostname, _ := os.Hostname() // without it, only localhost and addresses are accepted
	h := &handler{
		service: s, log: opts.Logger, tokens: opts.Tokens, anonymousWrites: opts.AnonymousWrites, hostname: hostname,
		lists: make(chan struct{}, listsAtOnce),
	}
	mux := http.NewServeMux()
	h.route(mux, agentsPath, methods{http.MethodGet: h.listAgents})
	h.route(mux, agentsPath+"/{name}", methods{http.MethodGet: h.getAgent, http.MethodDelete: h.deleteAgent})
	h.route(mux, groupsPath, methods{http.MethodGet: h.listGroups, http.MethodPost: h.createGroup})
	h.route(mux, groupsPath+"/{name}", methods{http.MethodDelete: h.deleteGroup})
	h.route(mux, configsPath, methods{http.MethodGet: h.listConfigurations})
	h.route(mux, configsPath+"/{name}", methods{
		http.MethodGet:    h.getConfiguration,
		http.MethodPost:   h.update(UpdateOptions{Create: true}),
		http.MethodPatch:  h.update(UpdateOptions{}),
		http.MethodPut:    h.update(UpdateOptions{Replace: true}),
		http.MethodDelete: h.deleteConfiguration,
	})
	mux.Handle("/", h.endpoint(func(*http.Request) (any, error) {
		return nil, NotFound("unknown path; the API is %s, %s and %s", agentsPath, groupsPath, configsPath)
	}))
	foreign := http.NewCrossOriginProtection()
	foreign.SetDenyHandler(h.endpoint(func(*http.Request) (any, error) {
		return nil, &Problem{Status: http.StatusForbidden, Code: CodeForbidden, Message: "cross-site requests are refused"}
	}))
	return foreign.Handler(mux)
}

type handler struct {
	service         Service
	log             *slog.Logger
	tokens          *tokens.Set // nil if none is required
	anonymousWrites bool
	hostname        string
	lists           chan struct{} // one element for each list in progress
}

// endpoint handles a request. A nil result is a response without a body.
type endpoint func(*http.Request) (any, error)

type methods map[string]endpoint

func (h *handler) route(mux *http.ServeMux, path string, of methods) {
	allowed := make([]string, 0, len(of))
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		if e := of[m]; e != nil {
			allowed = append(allowed, m)
			answering := h.endpoint(e)
			if m == http.MethodGet && !strings.Contains(path, "{") {
				answering = h.inTurn(answering)
			}
			mux.Handle(m+" "+path, answering)
		}
	}
	allow := strings.Join(allowed, ", ")
	refused := h.endpoint(func(r *http.Request) (any, error) {
		return nil, &Problem{
			Status: http.StatusMethodNotAllowed, Code: CodeMethodNotAllowed,
			Message: r.Method + " is not allowed here, only " + allow,
		}
	})
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allow)
		refused.ServeHTTP(w, r)
	})
}

// inTurn bounds the lists that are built and written concurrently: each holds memory
// until its client has read it.
func (h *handler) inTurn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		waited := time.NewTimer(serviceTimeout)
		defer waited.Stop()
		select {
		case h.lists <- struct{}{}:
			defer func() { <-h.lists }()
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		case <-waited.C:
			h.refuse(w, r, Unavailable("%d lists are in progress, which is the limit", listsAtOnce))
		}
	})
}

// endpoint wraps e with deadlines, authorization, panic handling and JSON.
func (h *handler) endpoint(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		now := time.Now()
		_ = control.SetReadDeadline(now.Add(bodyTimeout)) // tests use a writer without deadlines
		_ = control.SetWriteDeadline(now.Add(answerTimeout))
		ctx, cancel := context.WithTimeout(r.Context(), serviceTimeout)
		defer cancel()
		answer, err := h.answer(e, r.WithContext(ctx))
		if err != nil {
			h.refuse(w, r, err)
			return
		}
		write(w, http.StatusOK, answer)
	})
}

func (h *handler) answer(e endpoint, r *http.Request) (answer any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			h.log.Error("panic while answering a request", slog.String("method", r.Method), slog.String("path", r.URL.Path),
				slog.Any("cause", cause), slog.String("stack", string(debug.Stack())))
			err = &Problem{Status: http.StatusInternalServerError, Code: CodeInternal, Message: "internal error, see the server's log"}
		}
	}()
	if err := h.authorize(r); err != nil {
		return nil, err
	}
	return e(r)
}

func (h *handler) authorize(r *http.Request) error {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if h.tokens == nil {
		if !h.anonymousWrites && overLoopback(r) && !h.named(r.Host) {
			return &Problem{
				Status: http.StatusForbidden, Code: CodeForbidden,
				Message: "without a token, requests over loopback must be for localhost or this host's name, not for " + strconv.Quote(r.Host) + ": set control.token",
			}
		}
		if h.anonymousWrites || reads || fromThisHost(r) {
			return nil
		}
		return &Problem{
			Status: http.StatusForbidden, Code: CodeForbidden,
			Message: "without a token, changes are accepted only from the server's own host: set control.token, or control.allow_anonymous_writes",
		}
	}
	switch m := h.tokens.Match(tokens.Bearer(r.Header.Get("Authorization"))); {
	case !m.Known():
		return &Problem{
			Status: http.StatusUnauthorized, Code: CodeUnauthorized,
			Message: "the token is missing or wrong: send one of control.token, or of control.read_tokens to read",
		}
	case m.Label != RoleWrite && !reads:
		return &Problem{
			Status: http.StatusForbidden, Code: CodeForbidden,
			Message: "this token is one of control.read_tokens, which change nothing: use control.token",
		}
	}
	return nil
}

// fromThisHost reports whether a request came over loopback and not through a proxy
// there.
func fromThisHost(r *http.Request) bool {
	for name := range r.Header {
		switch {
		case name == "Forwarded", name == "X-Real-Ip", name == "Via",
			strings.HasPrefix(name, "X-Forwarded-"), strings.HasPrefix(name, "X-Envoy-"):
			return false
		}
	}
	return overLoopback(r)
}

func overLoopback(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && from.Addr().Unmap().IsLoopback()
}

// named reports whether host, from a request, is a local name of this host. A page whose
// name resolves to loopback (DNS rebinding) sends its own name and is the same site for
// the browser.
func (h *handler) named(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost") || h.hostname != "" && strings.EqualFold(host, h.hostname)
}

func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var p *Problem
	switch {
	case errors.As(err, &p):
	case errors.Is(err, context.DeadlineExceeded):
		p = Unavailable("no response within %v: %v", serviceTimeout, err)
	case r.Context().Err() != nil:
		p = Unavailable("the request was canceled: %v", err)
	default:
		p = &Problem{Status: http.StatusInternalServerError, Code: CodeInternal, Message: err.Error()}
	}
	if p.Status >= http.StatusInternalServerError {
		h.log.Error("request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	write(w, p.Status, p)
}

// write sends v as JSON, or no body if v is nil.
func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if v == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // fails only if the client has disconnected
}

func (h *handler) listAgents(r *http.Request) (any, error) {
	return listed(h.service.Agents(r.Context()))
}

func (h *handler) getAgent(r *http.Request) (any, error) {
	return h.service.Agent(r.Context(), r.PathValue("name"))
}

func (h *handler) deleteAgent(r *http.Request) (any, error) {
	return nil, h.service.DeleteAgent(r.Context(), r.PathValue("name"))
}

func (h *handler) listGroups(r *http.Request) (any, error) {
	return listed(h.service.Groups(r.Context()))
}

// newGroup is the body of a POST.
type newGroup struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name"`
}

func (h *handler) createGroup(r *http.Request) (any, error) {
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	var g newGroup
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&g); err != nil {
		return nil, Invalid(errors.New("the body is not a group as JSON, such as {\"name\": \"shop\"}: " + err.Error()))
	}
	return h.service.CreateGroup(r.Context(), g.Name, g.ID)
}

func (h *handler) deleteGroup(r *http.Request) (any, error) {
	return nil, h.service.DeleteGroup(r.Context(), r.PathValue("name"))
}

func (h *handler) listConfigurations(r *http.Request) (any, error) {
	return listed(h.service.Configurations(r.Context()))
}

func (h *handler) getConfiguration(r *http.Request) (any, error) {
	return h.service.Configuration(r.Context(), r.PathValue("name"))
}

func (h *handler) update(opts UpdateOptions) endpoint {
	return func(r *http.Request) (any, error) {
		opts := opts
		var err error
		if opts.DryRun, err = dryRun(r); err != nil {
			return nil, err
		}
		body, err := readBody(r)
		if err != nil {
			return nil, err
		}
		return withChanges(h.service.UpdateConfiguration(r.Context(), r.PathValue("name"), body, opts))
	}
}

func (h *handler) deleteConfiguration(r *http.Request) (any, error) {
	if r.URL.RawQuery != "" { // a requested dry run must not delete the configuration
		return nil, Invalid(errors.New("this request takes no parameters"))
	}
	return withChanges(h.service.DeleteConfiguration(r.Context(), r.PathValue("name")))
}

// dryRun is strict about the query: a misspelled parameter would make the change.
func dryRun(r *http.Request) (bool, error) {
	dry := false
	for name, values := range r.URL.Query() {
		var err error
		if name != dryRunParameter || len(values) != 1 {
			return false, Invalid(errors.New("the only parameter is " + dryRunParameter + ", once"))
		}
		if dry, err = strconv.ParseBool(values[0]); err != nil {
			return false, Invalid(errors.New(dryRunParameter + " is neither true nor false"))
		}
	}
	return dry, nil
}

const dryRunParameter = "dry_run"

func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, agentconfig.MaxTextBytes))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &Problem{Status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Message: "the body is larger than " + strconv.Itoa(agentconfig.MaxTextBytes) + " bytes"}
	case err != nil:
		return nil, Invalid(errors.New("the body cannot be read: " + err.Error()))
	}
	return body, nil
}

// listed encodes an empty list as [], not null.
func listed[T any](list []T, err error) (any, error) {
	if list == nil {
		list = []T{}
	}
	return list, err
}

func withChanges(u Update, err error) (any, error) {
	if u.Changes == nil {
		u.Changes = []agentconfig.Change{}
	}
	return u, err
}
