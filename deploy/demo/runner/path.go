package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/metaflowys/metaflow-server/deploy/demo/internal/process"
)

// path is the chain from the WebStore to the server: the agent, and a collector
// in front of it if there is one.
type path struct {
	children []*process.Process // in the order of the data flow
	entry    string             // endpoint for the WebStore's spans
	route    string             // the chain, for people

	agent     *process.Process                                 // nil if there is none
	configure func(ctx context.Context, settings string) error // applies settings to the agent's group
}

// group is the agent group of every agent that names no other.
const group = "default"

// startPath starts an agent, opens its port with metaflow-ctl, and puts the
// collector in front of it if the program exists.
func startPath(ctx context.Context, o options, at process.Endpoints, dir string, progress *progress) (_ *path, err error) {
	if o.agent == "" {
		return &path{entry: at.GRPC, route: "WebStore -> server"}, nil
	}
	p := &path{configure: func(ctx context.Context, settings string) error { return configure(ctx, o.ctl, at.HTTP, dir, settings) }}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop())
		}
	}()
	// The services may send from network namespaces of their own, in plain text.
	env := append(os.Environ(), "METAFLOW_OTLP_INSECURE=true")
	agent, err := process.Start("the agent", env, o.agent, "run", "--server", at.GRPC, "--spool-dir", filepath.Join(dir, "spool"), "--http-listen", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.agent, p.children = agent, append(p.children, agent)
	port, err := process.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	progress.printf("metaflow-ctl agent-group-config update %s: opening the agent's port %s", group, port)
	// The settings that the operator's page recommends.
	if err := p.configure(ctx, "external_agent_http_proxy_enabled: 1\nexternal_agent_http_proxy_port: "+port+"\n"); err != nil {
		return nil, err
	}
	receiver := net.JoinHostPort("127.0.0.1", port)
	if err := agent.Await(ctx, process.Listening(receiver)); err != nil {
		return nil, err
	}
	p.entry = "http://" + receiver + "/api/v1/otel/trace"
	p.route = "WebStore -> agent -> server"
	if _, err := os.Stat(o.collector); err != nil {
		return p, nil // the SDKs send to the agent
	}
	otlp, err := process.FreePort("127.0.0.1")
	if err != nil {
		return nil, err
	}
	collector, err := startCollector(o.collector, dir, net.JoinHostPort("127.0.0.1", otlp), p.entry)
	if err != nil {
		return nil, err
	}
	p.children = append([]*process.Process{collector}, p.children...)
	p.entry = net.JoinHostPort("127.0.0.1", otlp)
	p.route = "WebStore -> OpenTelemetry Collector -> agent -> server"
	return p, collector.Await(ctx, process.Listening(p.entry))
}

// stop stops the programs in the order of the data flow, so that each forwards
// what it has.
func (p *path) stop() error {
	var errs []error
	for _, c := range p.children {
		errs = append(errs, c.Stop())
	}
	return errors.Join(errs...)
}

// configure changes the settings of the agent's group with metaflow-ctl.
func configure(ctx context.Context, ctl, server, dir, settings string) error {
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		return err
	}
	host, api, err := net.SplitHostPort(server)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, ctl, "agent-group-config", "update", group, "-f", file, "--ip", host, "--api-port", api) //nolint:gosec // the user names it
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("configure the agent: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startCollector runs an OpenTelemetry Collector that sends to the agent,
// configured like the DaemonSet of deploy/otel-agent.
func startCollector(program, dir, listen, traces string) (*process.Process, error) {
	file := filepath.Join(dir, "collector.yaml")
	text := fmt.Sprintf(`receivers:
  otlp: {protocols: {grpc: {endpoint: %q}}}
exporters:
  otlphttp: {traces_endpoint: %q, tls: {insecure: true}, retry_on_failure: {enabled: true}}
service:
  telemetry: {metrics: {level: none}, logs: {level: warn}}
  pipelines: {traces: {receivers: [otlp], exporters: [otlphttp]}}
`, listen, traces)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return process.Start("the collector", nil, program, "--config", file)
}
