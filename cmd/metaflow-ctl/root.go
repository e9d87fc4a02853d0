package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/control/api"
	"github.com/metaflowys/metaflow-server/pkg/tokens"
)

// environment is the program's input besides the command line.
type environment struct {
	variables []string // as from os.Environ
	now       func() time.Time
}

// Formats of -o.
const (
	formatTable = "table"
	formatYAML  = "yaml"
	formatJSON  = "json"
)

var formats = []string{formatTable, formatYAML, formatJSON}

// options are the flags of all commands.
type options struct {
	env environment

	ip      string
	port    uint16
	timeout time.Duration
	output  string
	token   string
	// tokenFile holds the token, if token is empty.
	tokenFile string
	tls       bool
	caFile    string
	certFile  string
	keyFile   string
	insecure  bool
}

// flagOf maps each environment variable to the flag that it replaces.
var flagOf = map[string]string{
	"METAFLOW_CTL_IP": "ip", "METAFLOW_CTL_API_PORT": "api-port", "METAFLOW_CTL_TOKEN": "token", "METAFLOW_CTL_TOKEN_FILE": "token-file",
	"METAFLOW_CTL_TLS": "tls", "METAFLOW_CTL_CA_FILE": "ca-file", "METAFLOW_CTL_INSECURE_SKIP_VERIFY": "insecure-skip-verify",
	"METAFLOW_CTL_CERT_FILE": "cert-file", "METAFLOW_CTL_KEY_FILE": "key-file",
}

func newRoot(name string, env environment) *cobra.Command {
	if name != "metaflow-cli" {
		name = "metaflow-ctl"
	}
	o := &options{env: env}
	root := program.Root(name, "Control the agents of MetaFlow", newAgent(o), newGroup(o), newGroupConfig(o), newVerify(o))
	root.Long = fmt.Sprintf(`%[1]s shows the agents of a metaflow-server and changes their configuration.

To receive traces of OpenTelemetry collectors on port 38086 of every agent of a group:
  %[1]s agent-group list
  echo 'external_agent_http_proxy_enabled: 1' > agent.yaml
  %[1]s agent-group-config update ID -f agent.yaml

Exit status: 0 on success, 1 on failure, 2 if the command line is invalid.`, name)
	root.CompletionOptions.HiddenDefaultCmd = false

	flags := root.PersistentFlags()
	flags.StringVarP(&o.ip, "ip", "i", "127.0.0.1", "`address` or name of a metaflow-server, or of a node of its cluster; also $METAFLOW_CTL_IP")
	flags.Uint16Var(&o.port, "api-port", 20417, "HTTP `port` of the server; 30417 on a node of the cluster; also $METAFLOW_CTL_API_PORT")
	program.DurationVar(flags, &o.timeout, "timeout", 30*time.Second, "timeout of one request")
	flags.StringVarP(&o.output, "output", "o", formatTable, "output `format`: table, yaml or json")
	flags.StringVar(&o.token, "token", "", "`secret` of the server's configuration, if it has one; prefer $METAFLOW_CTL_TOKEN, which other users cannot see")
	flags.StringVar(&o.tokenFile, "token-file", "", "`file` that holds the token, in place of --token; also $METAFLOW_CTL_TOKEN_FILE")
	flags.BoolVar(&o.tls, "tls", false, "use HTTPS")
	flags.StringVar(&o.caFile, "ca-file", "", "PEM `file` with the certificates of authorities to trust, instead of the system's; implies --tls")
	flags.StringVar(&o.certFile, "cert-file", "", "PEM `file` with the client certificate, if the server requires one; implies --tls, needs --key-file")
	flags.StringVar(&o.keyFile, "key-file", "", "PEM `file` with the key of --cert-file")
	flags.BoolVar(&o.insecure, "insecure-skip-verify", false, "trust every certificate; implies --tls")
	completeFlag(root, "output", formats)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return o.complete(cmd) }
	return root
}

// complete sets flags that are missing on the command line from the environment, and
// rejects values that no command can use.
func (o *options) complete(cmd *cobra.Command) error {
	for _, set := range o.env.variables {
		variable, value, _ := strings.Cut(set, "=")
		flag := cmd.Flags().Lookup(flagOf[variable])
		if flag == nil || flag.Changed || value == "" {
			continue
		}
		if err := program.SetFlag(flag, value, variable); err != nil {
			return err
		}
	}
	for _, p := range config.UnknownVariables(o.env.variables, "METAFLOW_CTL_", slices.Collect(maps.Keys(flagOf)), nil) {
		return program.Usage("%v", p)
	}
	switch {
	case !slices.Contains(formats, o.output):
		return program.Usage("-o %q is not one of %s", o.output, strings.Join(formats, ", "))
	case o.timeout <= 0:
		return program.Usage("--timeout %v is not positive", o.timeout)
	case strings.ContainsAny(o.ip, "/ "):
		return program.Usage("--ip %q is neither an address nor a name, such as 10.0.0.7 or metaflow-server", o.ip)
	case hasPort(o.ip):
		host, port, _ := net.SplitHostPort(o.ip)
		return program.Usage("--ip %q has a port; write: -i %s --api-port %s", o.ip, host, port)
	case o.token != "" && o.tokenFile != "":
		return program.Usage("--token and --token-file: give one of them")
	case (o.certFile == "") != (o.keyFile == ""):
		return program.Usage("--cert-file %q and --key-file %q: one needs the other", o.certFile, o.keyFile)
	}
	return nil
}

// client returns a client of the server that the flags name.
func (o *options) client() (*api.Client, error) {
	token, err := tokens.OpenFile("read --token-file", o.token, o.tokenFile)
	if err != nil {
		return nil, err
	}
	co := api.ClientOptions{Token: token.Token(), Timeout: o.timeout}
	scheme := "http"
	if o.tls || o.caFile != "" || o.certFile != "" || o.insecure {
		scheme = "https"
		co.TLS = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: o.insecure, //nolint:gosec // the flag says so
		}
		if o.certFile != "" {
			pair, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
			if err != nil {
				return nil, fmt.Errorf("read --cert-file and --key-file: %w", err)
			}
			co.TLS.Certificates = []tls.Certificate{pair}
		}
		if o.caFile != "" {
			pem, err := os.ReadFile(o.caFile)
			if err != nil {
				return nil, err
			}
			co.TLS.RootCAs = x509.NewCertPool()
			if !co.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s has no certificate in PEM", o.caFile)
			}
		}
	}
	host := strings.Trim(o.ip, "[]")
	co.BaseURL = scheme + "://" + net.JoinHostPort(host, strconv.Itoa(int(o.port)))
	return api.NewClient(co), nil
}

// run wraps a command that calls a server.
func (o *options) run(f func(*call) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		client, err := o.client()
		if err != nil {
			return err
		}
		defer client.Close()
		err = f(&call{Command: cmd, options: o, service: client, args: args})
		if err != nil {
			if hint := o.hint(err); hint != "" {
				return fmt.Errorf("%w\n%s", err, hint)
			}
		}
		return err
	}
}

// hasPort reports whether address is host:port. An IPv6 address has colons, too.
func hasPort(address string) bool {
	_, port, err := net.SplitHostPort(address)
	return err == nil && port != ""
}

// hint returns what to write instead, if err is due to the flags.
func (o *options) hint(err error) string {
	var dial *net.OpError
	var plain tls.RecordHeaderError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var problem *api.Problem
	text := err.Error()
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return "set the server's address with -i and --api-port"
	case errors.As(err, &problem):
		if problem.Code == api.CodeUnauthorized {
			return "set the token with --token-file or METAFLOW_CTL_TOKEN"
		}
		return ""
	case errors.As(err, &plain) || strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return "this port has no TLS: leave out --tls and the flags that imply it"
	case errors.As(err, &authority):
		return "set --ca-file to the authority that signed the server's certificate"
	case errors.As(err, &hostname):
		return "set -i to a name in the server's certificate"
	case strings.Contains(text, "HTTPS server") || strings.Contains(text, "malformed HTTP response \"\\x15\\x03"):
		return "this port has TLS: add --tls, or --ca-file FILE"
	case strings.Contains(text, "like the API of a metaflow-server") || strings.Contains(text, "malformed HTTP response"):
		return fmt.Sprintf("port %d is not the HTTP port of a metaflow-server: set --api-port to http.listen of its configuration, 20417 by default and 30417 on a node of the chart", o.port)
	default:
		return ""
	}
}

// call is one run of a command that calls a server.
type call struct {
	*cobra.Command
	*options
	service api.Service
	args    []string
}

// named returns the only argument, or "" without one.
func (c *call) named() string {
	if len(c.args) == 0 {
		return ""
	}
	return c.args[0]
}
