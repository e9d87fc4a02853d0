package main

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/metaflowys/metaflow-server/pkg/rpc/agentauth"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// admission is the tokens that callers present. A nil set asks for none.
type admission struct {
	agents    *tokens.Set
	operators *tokens.Set
	bearers   *tokens.Set // of OTLP clients
	askers    *tokens.Set // of the role query
}

// newAdmission reads the tokens of the configuration and its files.
func newAdmission(cfg *server, log *slog.Logger) (a admission, err error) {
	var errs [4]error
	a.agents, errs[0] = cfg.Control.TokensOfAgents(log)
	a.operators, errs[1] = cfg.Control.OperatorTokens(log)
	a.bearers, errs[2] = tokens.Open(log, cfg.Gateway.Bearers())
	a.askers, errs[3] = tokens.Open(log, cfg.Query.Bearers())
	return a, errors.Join(errs[:]...)
}

// run follows the files until ctx ends. It calls revoked after tokens of agents have
// changed.
func (a admission) run(ctx context.Context, revoked func()) {
	var files sync.WaitGroup
	defer files.Wait()
	files.Go(func() { a.agents.Run(ctx, revoked) })
	files.Go(func() { a.operators.Run(ctx, nil) })
	files.Go(func() { a.bearers.Run(ctx, nil) })
	files.Go(func() { a.askers.Run(ctx, nil) })
}

// guard returns the Guard of the configuration.
func (a admission) guard(cfg *server) *agentauth.Guard {
	opts := agentauth.Options{Mutual: cfg.GRPC.TLS.ClientCAFile != "", CertificateGroups: cfg.Control.CertificateGroups}
	if a.agents != nil {
		opts.Tokens = func(token string, groups ...string) (known, good bool) {
			m := a.agents.Match(token)
			return m.Known(), m.For(groups...)
		}
	}
	return agentauth.New(opts)
}
