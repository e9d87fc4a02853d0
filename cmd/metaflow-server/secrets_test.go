package main

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
	"github.com/metaflowys/metaflow-server/pkg/config"
	"github.com/metaflowys/metaflow-server/pkg/embedded/broker"
	"github.com/metaflowys/metaflow-server/pkg/testkit/kafkatest"
	"github.com/metaflowys/metaflow-server/pkg/testkit/output"
	"github.com/metaflowys/metaflow-server/schema"
)

// secretText stands in every secret of these tests.
const secretText = "hunter2"

// setSecrets sets every secret key in the environment.
func setSecrets(t *testing.T) (keys int) {
	t.Helper()
	for _, k := range config.Keys(defaultServer(), program.EnvPrefix) {
		if !k.Secret {
			continue
		}
		keys++
		value := secretText + "-" + k.Name
		if k.Name == "control.group_tokens" {
			value = "shop:" + value
		}
		t.Setenv(k.Env, value)
	}
	return keys
}

// The command line shows no secret, neither in the configuration nor in errors about it.
func TestCommandsShowNoSecrets(t *testing.T) {
	keys := setSecrets(t)
	code, out, errOut := execute(t, "config", "print")
	if code != program.ExitOK || strings.Contains(out+errOut, secretText) || strings.Count(out, "# ***") != keys {
		t.Errorf("config print of %d secrets: exit status %d\n%s%s", keys, code, out, errOut)
	}
	t.Setenv("METAFLOW_CONTROL_GROUP_TOKENS", secretText)
	t.Setenv("METAFLOW_GATEWAY_BEARER_TOKENS", secretText+" "+secretText)
	t.Setenv("METAFLOW_HTTP_LISTEN", "nowhere")
	for _, command := range [][]string{{"config", "check"}, {"config", "print"}, {"serve"}} {
		if code, out, errOut := execute(t, command...); code != program.ExitUsage || strings.Contains(out+errOut, secretText) || !strings.Contains(errOut, "control.group_tokens[0]") {
			t.Errorf("%s: exit status %d\n%s%s", command, code, out, errOut)
		}
	}
}

// A running server shows no secret in its log, its metrics, /ready and the
// answers to operators, agents and senders with right and wrong tokens.
func TestServersShowNoSecrets(t *testing.T) {
	setSecrets(t)
	cfg := defaultServer()
	if err := config.Load(cfg, config.Options{EnvPrefix: program.EnvPrefix, OtherVariables: []string{"METAFLOW_TEST_", "METAFLOW_CHDB_LIBRARY"}}); err != nil {
		t.Fatal(err)
	}
	loaded := *cfg
	logged := new(output.Buffer)
	s := serveLogging(t, kafkatest.Start(t, broker.Options{}).Addr(), program.Log{Level: "debug", Format: "json"}.Logger(logged), func(c *server) {
		kafka := c.Kafka
		*c = loaded
		c.Kafka.Brokers, c.Kafka.Replication = kafka.Brokers, kafka.Replication
		c.GRPC.Listen, c.HTTP.Listen, c.Gateway.HTTPListen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		c.Roles = []string{roleGateway, roleControl}
	})
	var seen strings.Builder
	for _, url := range []string{
		"http://" + s.http.Addr().String() + "/metrics", "http://" + s.http.Addr().String() + "/ready",
		"http://" + s.http.Addr().String() + "/v1/agents", "http://" + s.http.Addr().String() + "/v1/agent-group-configs", "http://" + s.otlp.String() + "/v1/traces",
	} {
		for _, token := range []string{"wrong", secretText + "-control.token", secretText + "-control.read_tokens"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			seen.Write(body)
		}
	}
	for _, token := range []string{secretText, secretText + "-control.agent_tokens", secretText + "-control.group_tokens"} {
		ctx, leave := context.WithCancel(t.Context())
		if err := join(showing(ctx, schema.MetadataToken, token, schema.MetadataSecret, secretText), s.dial(t), "a", "1"); err != nil {
			seen.WriteString(err.Error())
		}
		leave()
	}
	// A sender with the right token whose request is damaged, and one with the wrong token.
	for _, token := range []string{secretText + "-gateway.bearer_tokens", secretText} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.otlp.String()+"/v1/traces", strings.NewReader("damaged"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/x-protobuf")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode == http.StatusOK {
			t.Errorf("a damaged request: %s, %v", resp.Status, err)
		}
		seen.Write(body)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if text := logged.String(); !strings.Contains(text, "listening for grpc") || !strings.Contains(text, "agent connected") {
		t.Errorf("the log is incomplete:\n%s", text)
	} else {
		seen.WriteString(text)
	}
	if text := seen.String(); strings.Contains(text, secretText) {
		t.Errorf("a secret is shown:\n%s", text)
	}
}
