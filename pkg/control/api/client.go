package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxAnswerBytes is ten times the response for a hundred thousand agents.
const maxAnswerBytes = 1 << 30

// ClientOptions configure a Client.
type ClientOptions struct {
	BaseURL string        // with scheme, host and port
	Token   string        // empty sends none
	Timeout time.Duration // of one request; 0 means 30 seconds
	TLS     *tls.Config   // nil means the system's defaults
}

// Client is a Service over HTTP. Its errors are of type *Problem if the server responded
// with one. It is safe for concurrent use.
type Client struct {
	base  string
	token string
	http  http.Client
}

var _ Service = (*Client)(nil)

// NewClient returns a Client. It connects with the first request.
func NewClient(opts ClientOptions) *Client {
	if opts.Timeout == 0 {
		opts.Timeout = 30 * time.Second
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: opts.TLS, ForceAttemptHTTP2: true,
		IdleConnTimeout: time.Minute,
	}
	return &Client{
		base: strings.TrimSuffix(opts.BaseURL, "/"), token: opts.Token,
		http: http.Client{
			Transport: transport, Timeout: opts.Timeout,
			// The server never redirects, and the token must not reach another host.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Agents implements Service.
func (c *Client) Agents(ctx context.Context) ([]Agent, error) {
	return ask[[]Agent](ctx, c, request{method: http.MethodGet, path: agentsPath})
}

// Agent implements Service.
func (c *Client) Agent(ctx context.Context, idOrName string) (Agent, error) {
	return ask[Agent](ctx, c, request{method: http.MethodGet, path: agentsPath, one: true, name: idOrName})
}

// DeleteAgent implements Service.
func (c *Client) DeleteAgent(ctx context.Context, idOrName string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: agentsPath, one: true, name: idOrName}, nil)
}

// Groups implements Service.
func (c *Client) Groups(ctx context.Context) ([]Group, error) {
	return ask[[]Group](ctx, c, request{method: http.MethodGet, path: groupsPath})
}

// CreateGroup implements Service.
func (c *Client) CreateGroup(ctx context.Context, name, id string) (Group, error) {
	body, err := json.Marshal(newGroup{ID: id, Name: name})
	if err != nil {
		return Group{}, err
	}
	return ask[Group](ctx, c, request{method: http.MethodPost, path: groupsPath, body: body, contentType: typeJSON})
}

// DeleteGroup implements Service.
func (c *Client) DeleteGroup(ctx context.Context, idOrName string) error {
	return c.do(ctx, request{method: http.MethodDelete, path: groupsPath, one: true, name: idOrName}, nil)
}

// Configurations implements Service.
func (c *Client) Configurations(ctx context.Context) ([]Configuration, error) {
	return ask[[]Configuration](ctx, c, request{method: http.MethodGet, path: configsPath})
}

// Configuration implements Service.
func (c *Client) Configuration(ctx context.Context, group string) (Configuration, error) {
	return ask[Configuration](ctx, c, request{method: http.MethodGet, path: configsPath, one: true, name: group})
}

// UpdateConfiguration implements Service.
func (c *Client) UpdateConfiguration(ctx context.Context, group string, text []byte, opts UpdateOptions) (Update, error) {
	r := request{method: http.MethodPatch, path: configsPath, one: true, name: group, body: text, contentType: typeYAML}
	switch {
	case opts.Create:
		r.method = http.MethodPost
	case opts.Replace:
		r.method = http.MethodPut
	}
	if opts.DryRun {
		r.query = dryRunParameter + "=true"
	}
	return ask[Update](ctx, c, r)
}

// DeleteConfiguration implements Service.
func (c *Client) DeleteConfiguration(ctx context.Context, group string) (Update, error) {
	return ask[Update](ctx, c, request{method: http.MethodDelete, path: configsPath, one: true, name: group})
}

const (
	typeJSON = "application/json"
	typeYAML = "application/yaml"
)

type request struct {
	method, path string
	one          bool // the path addresses the element called name
	name         string
	query        string
	body         []byte
	contentType  string
}

// url returns the URL of r. It rejects names that do not survive in a path.
func (c *Client) url(r request) (string, error) {
	u := c.base + r.path
	if r.one {
		if r.name == "" || r.name == "." || r.name == ".." {
			return "", NotFound("%q is not a name", r.name)
		}
		u += "/" + url.PathEscape(r.name)
	}
	if r.query != "" {
		u += "?" + r.query
	}
	return u, nil
}

func ask[T any](ctx context.Context, c *Client, r request) (T, error) {
	var answer T
	err := c.do(ctx, r, &answer)
	return answer, err
}

// do sends r and decodes the response into the value that into points to, unless into is
// nil.
func (c *Client) do(ctx context.Context, r request, into any) error {
	where, err := c.url(r)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, r.method, where, bytes.NewReader(r.body)) //nolint:gosec // whoever runs the program names the server
	if err != nil {
		return err
	}
	req.Header.Set("Accept", typeJSON)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req) //nolint:gosec // the same
	if err != nil {
		return explain(err, c.base)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return fmt.Errorf("read the response of %s: %w", c.base, err)
	}
	if res.StatusCode >= http.StatusMultipleChoices {
		return problemOf(res.StatusCode, body, where)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s does not respond like the API of a metaflow-server: %w", where, err)
	}
	return nil
}

// explain drops the method and URL that http.Client puts before the cause.
func explain(err error, base string) error {
	var inner *url.Error
	if !errors.As(err, &inner) {
		return err
	}
	if inner.Timeout() {
		return fmt.Errorf("ask %s: no response in time: %w", base, inner.Err)
	}
	return fmt.Errorf("ask %s: %w", base, inner.Err)
}

// problemOf converts an error response to an error, even if another program than the
// handler sent it.
func problemOf(status int, body []byte, where string) error {
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" || p.Message == "" {
		const shown = 200
		text := strings.Join(strings.Fields(string(body[:min(len(body), shown)])), " ")
		return fmt.Errorf("%s responded with status %d, not like the API of a metaflow-server: %q", where, status, strings.ToValidUTF8(text, ""))
	}
	p.Status = status
	return &p
}
