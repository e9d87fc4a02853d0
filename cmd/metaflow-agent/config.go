package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/agent"
	"github.com/metaflowys/metaflow-server/pkg/agent/k8s"
	"github.com/metaflowys/metaflow-server/pkg/agent/upstream"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/opshttp"
	"github.com/metaflowys/metaflow-server/pkg/values"
)

// settings is the configuration file of metaflow-agent.
type settings struct {
	Server     upstream.Config `mapstructure:"server"`
	Group      string          `mapstructure:"group" doc:"agent group to join, by id or name; if empty, the group 'default'"`
	Name       string          `mapstructure:"name" doc:"name shown in 'metaflow-ctl agent list'; if empty, the host's name. In Kubernetes, set the node's name"`
	ID         string          `mapstructure:"id" doc:"identity of this agent over restarts; if empty, derived from cluster, name and the machine's id"`
	Cluster    string          `mapstructure:"cluster" doc:"Kubernetes cluster of the node; empty outside Kubernetes"`
	Spool      spoolSettings   `mapstructure:"spool"`
	OTLP       agent.Config    `mapstructure:"otlp"`
	Kubernetes k8s.Config      `mapstructure:"kubernetes"`
	HTTP       opshttp.Config  `mapstructure:"http"`
	Log        program.Log     `mapstructure:"log"`
}

type spoolSettings struct {
	Dir string `mapstructure:"dir" doc:"directory for requests that wait for a server and for the last configuration; created if missing. outputs.spool.max_bytes of the agent group bounds its size"`
	// Requests from the spool that servers reject.
	ParkedMaxBytes int64         `mapstructure:"parked_max_bytes" unit:"bytes" doc:"bound of the folder 'parked' in spool.dir, which holds acknowledged requests that servers reject. When it is full, further ones stay in the spool; nothing is dropped"`
	ParkedMaxAge   time.Duration `mapstructure:"parked_max_age" doc:"age at which parked requests are removed and counted as lost; 0 keeps them until an operator sends or removes them"`
}

// parkedDir returns the directory of parked requests.
func (s spoolSettings) parkedDir() string { return filepath.Join(s.Dir, "parked") }

var configured = program.Configured[*settings]{New: defaults}

func defaults() *settings {
	cfg := &settings{
		Server:     upstream.DefaultConfig(),
		Spool:      spoolSettings{Dir: "/var/lib/metaflow-agent", ParkedMaxBytes: 256 << 20},
		OTLP:       agent.DefaultConfig(),
		Kubernetes: k8s.DefaultConfig(),
		HTTP:       opshttp.DefaultConfig(),
		Log:        program.DefaultLog(),
	}
	cfg.HTTP.Listen = "127.0.0.1:38087"
	return cfg
}

// exposures describes what the agent accepts in plain text from other hosts, one sentence
// each.
func (s *settings) exposures() (found []string) {
	if s.OTLP.Exposed() {
		found = append(found, "otlp.insecure lets the ports of the agent group accept plain text from the network; set otlp.tls")
	}
	if s.HTTP.TLS.CertFile == "" && !values.Loopback(s.HTTP.Listen) {
		found = append(found, fmt.Sprintf("http.listen %s serves plain text to the network (http.insecure); set http.tls", s.HTTP.Listen))
	}
	return found
}

// Validate reports all problems, each by its key.
func (s *settings) Validate() error {
	var errs []error
	if s.Spool.Dir == "" {
		errs = append(errs, errors.New("spool.dir: required"))
	}
	if s.Spool.ParkedMaxBytes < 0 {
		errs = append(errs, fmt.Errorf("spool.parked_max_bytes: %d is negative", s.Spool.ParkedMaxBytes))
	}
	if s.Spool.ParkedMaxAge < 0 {
		errs = append(errs, fmt.Errorf("spool.parked_max_age: %s is negative", s.Spool.ParkedMaxAge))
	}
	if err := values.CheckExposed(s.HTTP.Listen, s.HTTP.TLS.CertFile != "", s.HTTP.Insecure, "http.tls", "http.insecure"); err != nil {
		errs = append(errs, fmt.Errorf("http.listen: %w", err))
	}
	return errors.Join(append(errs,
		config.Section("server", s.Server.Validate()),
		config.Section("otlp", s.OTLP.Validate()),
		config.Section("kubernetes", s.Kubernetes.Validate()),
		config.Section("http", s.HTTP.Validate()),
		config.Section("log", s.Log.Validate()),
	)...)
}
