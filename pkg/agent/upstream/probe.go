package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/metaflowys/metaflow-server/schema/agentv1"
)

// The steps towards a server, in their order. A step is tried only if those
// before it succeeded.
const (
	StepName   = "name"   // look up the host
	StepPort   = "port"   // open a TCP connection
	StepTLS    = "TLS"    // agree on TLS; left out without server.tls
	StepServer = "server" // find a MetaFlow server behind the port
	StepToken  = "token"  // be admitted with this token, certificate and id
	StepGroup  = "group"  // belong to an agent group that exists
)

// Finding is the result of one step.
type Finding struct {
	Step   string
	Target string // the address as configured, or host:port of one of its IP addresses
	Detail string // what was found, if Err is nil
	Err    error  // the cause and what to do, for an operator
}

// Probe goes every step towards every server, over connections of its own, and
// returns what it found. r identifies the agent; no server registers it. Probe
// takes a few connect timeouts at most.
func (c *Client) Probe(ctx context.Context, r *agentv1.Registration) []Finding {
	return c.probe(ctx, r, false)
}

// Trouble returns why no server is connected, as an operator should read it, or
// nil if nothing is wrong by now. It probes like Probe, but only one IP address
// of each name.
func (c *Client) Trouble(ctx context.Context, r *agentv1.Registration) error {
	var failed []error
	found := c.probe(ctx, r, true)
	for i, f := range found {
		last := i+1 == len(found) || found[i+1].Target != f.Target && f.Step != StepName
		switch {
		case f.Err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", f.Target, f.Err))
		case last:
			return nil // one server is enough
		}
	}
	return joined(failed)
}

// joined joins errors in one line.
func joined(errs []error) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

func (c *Client) probe(ctx context.Context, r *agentv1.Registration, oneEach bool) []Finding {
	perAddress := make([][]Finding, len(c.cfg.Addresses))
	var all sync.WaitGroup
	for i, addr := range c.cfg.Addresses {
		all.Go(func() { perAddress[i] = c.probeAddress(ctx, addr, r, oneEach) })
	}
	all.Wait()
	var found []Finding
	for _, f := range perAddress {
		found = append(found, f...)
	}
	return found
}

// probeAddress probes one configured address.
func (c *Client) probeAddress(ctx context.Context, addr string, r *agentv1.Registration, oneEach bool) []Finding {
	targets, err := (&lookups{replicas: c.replicas}).one(ctx, addr)
	name := Finding{Step: StepName, Target: addr, Detail: strings.Join(targets, ", ")}
	if err != nil {
		name.Err = fmt.Errorf("%w (server.addresses)", err)
		return []Finding{name}
	}
	var found []Finding
	if host, _, _ := net.SplitHostPort(addr); net.ParseIP(host) == nil {
		found = append(found, name)
	}
	if oneEach {
		n := rand.N(len(targets)) //nolint:gosec // spreads load, guards nothing
		targets = targets[n : n+1]
	}
	perTarget := make([][]Finding, len(targets))
	var all sync.WaitGroup
	for i, target := range targets {
		all.Go(func() { perTarget[i] = c.probeTarget(ctx, addr, target, r) })
	}
	all.Wait()
	for _, f := range perTarget {
		found = append(found, f...)
	}
	return found
}

// probeTarget probes target, an IP address with port of the configured address
// addr.
func (c *Client) probeTarget(ctx context.Context, addr, target string, r *agentv1.Registration) (found []Finding) {
	ctx, cancel := context.WithTimeout(ctx, 2*c.cfg.ConnectTimeout)
	defer cancel()
	add := func(step, detail string, err error) bool {
		found = append(found, Finding{Step: step, Target: target, Detail: detail, Err: err})
		return err == nil
	}
	dialer := net.Dialer{Timeout: c.cfg.ConnectTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if !add(StepPort, "open", c.explainDial(err)) {
		return found
	}
	defer func() { _ = conn.Close() }()
	if c.certificates != nil {
		secure, err := c.certificates.Encrypt(ctx, conn, addr)
		if !add(StepTLS, "the certificate is trusted", explainTLS(err)) {
			return found
		}
		defer func() { _ = secure.Close() }()
	}

	single := *c.replicas
	single.cfg.Addresses, single.log, single.metrics = []string{addr}, slog.New(slog.DiscardHandler), newMetrics(nil, c)
	single.lookupHost = func(context.Context, string) ([]string, error) {
		ip, err := netip.ParseAddrPort(target)
		return []string{ip.Addr().String()}, err
	}
	server, err := grpc.NewClient(scheme+":///servers", append(c.common, grpc.WithResolvers(&single))...)
	if err != nil {
		add(StepServer, "", err)
		return found
	}
	defer func() { _ = server.Close() }()
	ctx = metadata.NewOutgoingContext(ctx, c.plain)
	group, err := agentv1.NewControlServiceClient(server).Check(ctx, &agentv1.CheckRequest{Registration: r})
	switch status.Code(err) {
	case codes.OK:
		add(StepServer, "a MetaFlow server", nil)
		add(StepToken, "accepted", nil)
		if group.GetGroupId() == "" {
			add(StepGroup, "", UnknownGroup(r.Group))
		} else {
			add(StepGroup, fmt.Sprintf("%s (%s)", group.GetGroupName(), group.GetGroupId()), nil)
		}
	case codes.Unauthenticated, codes.PermissionDenied:
		add(StepServer, "a MetaFlow server", nil)
		add(StepToken, "", errors.New(status.Convert(err).Message()))
	case codes.Unimplemented:
		detail, err := withoutCheck(ctx, server, err)
		add(StepServer, detail, err)
	default:
		add(StepServer, "", c.explainCall(err))
	}
	return found
}

// withoutCheck tells what a gRPC server without Check is.
func withoutCheck(ctx context.Context, server *grpc.ClientConn, err error) (detail string, _ error) {
	if strings.Contains(err.Error(), "unknown method") {
		return "a MetaFlow server of an older version; token and group were not checked", nil
	}
	_, err = agentv1.NewFlowServiceClient(server).ExportFlows(ctx, &agentv1.ExportFlowsRequest{})
	if status.Code(err) == codes.Unimplemented {
		return "", errors.New("another program answers there: it speaks gRPC, but it is not metaflow-server (server.addresses; the port is 20035 by default)")
	}
	return "a MetaFlow server without the role control; token and group were not checked", nil
}

// UnknownGroup returns the error of an agent whose group does not exist.
func UnknownGroup(group string) error {
	return fmt.Errorf("there is no agent group %q: correct 'group', or create it with 'metaflow-ctl agent-group create %s'", group, group)
}

// explainDial turns the error of a TCP connection into words for an operator.
func (c *Client) explainDial(err error) error {
	var late net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused: nothing listens on this address; is metaflow-server running, and is its grpc.listen reachable from here?")
	case errors.As(err, &late) && late.Timeout():
		return fmt.Errorf("no answer within %s: a wrong address, or a firewall in between", c.cfg.ConnectTimeout)
	default:
		return err
	}
}

// explainTLS turns the error of a TLS handshake into words for an operator.
func explainTLS(err error) error {
	var plainText tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var host x509.HostnameError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &plainText):
		return errors.New("the server does not use TLS: set its grpc.tls, or server.tls.enabled: false here")
	case errors.As(err, &authority):
		return fmt.Errorf("%w (server.tls.ca_file)", err)
	case errors.As(err, &host):
		return fmt.Errorf("%w (server.tls.server_name)", err)
	default:
		return fmt.Errorf("TLS handshake: %w", err)
	}
}

// notGRPC recognizes the errors of a connection whose other end closes it at
// gRPC's first bytes, or answers in another protocol.
func notGRPC(text string) bool {
	return slices.ContainsFunc([]string{"server preface", "broken pipe", "connection reset", "EOF"}, func(part string) bool {
		return strings.Contains(text, part)
	})
}

// explainCall turns the error of a call into words for an operator. gRPC has no
// types for what goes wrong on a connection.
func (c *Client) explainCall(err error) error {
	text := status.Convert(err).Message()
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return errors.New("the port is open but nothing answers: the server hangs, or another program listens there")
	case strings.Contains(text, "tls: certificate required"), strings.Contains(text, "tls: bad certificate"):
		return errors.New("the server wants a client certificate that it trusts (server.tls.cert_file)")
	case notGRPC(text) && c.certificates == nil:
		return errors.New("not a MetaFlow server, or it uses TLS (server.tls.enabled): it does not answer in gRPC")
	case notGRPC(text):
		return errors.New("not a MetaFlow server, or it wants a client certificate that it trusts (server.tls.cert_file): it does not answer in gRPC")
	default:
		return Explained(err)
	}
}
