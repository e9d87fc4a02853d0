package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/cmd/internal/program"
)

// migrate check reports everything at once: ClickHouse that does not answer, a topic that
// the user may only describe, and one that does not exist yet.
func TestMigrateCheck(t *testing.T) {
	describe := kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: "metaflow.", Pattern: kmsg.ACLResourcePatternTypePrefixed, Operation: kmsg.ACLOperationDescribe, Allow: true}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.SeedTopics(1, "metaflow.spans"), kfake.User("PLAIN", "metaflow", "secret", describe))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	file := filepath.Join(t.TempDir(), "metaflow.yaml")
	config := fmt.Sprintf("kafka: {brokers: [%q], replication: 1, sasl: {mechanism: plain, username: metaflow, password: secret}}\nclickhouse: {addresses: [\"127.0.0.1:1\"]}\n", cluster.ListenAddrs()[0])
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	status := program.Run(context.Background(), newRoot(), []string{"migrate", "check", "--config", file}, &stdout, &stderr)
	if status != program.ExitFailed || !strings.Contains(stderr.String(), "2 problems found") {
		t.Errorf("status %d, %s", status, stderr.String())
	}
	for _, want := range []string{
		"PROBLEM  ClickHouse: 127.0.0.1:1: ",
		`PROBLEM  Kafka: topic metaflow.spans: the user "metaflow" (kafka.sasl.username) lacks the right Read and Write`,
		"--allow-principal User:metaflow --resource-pattern-type prefixed --topic metaflow. --operation Create --operation Describe --operation Read --operation Write",
		"--group metaflow- --operation Read",
		"ok       Kafka: topic metaflow.flows does not exist yet: a server creates it",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("lacks %q:\n%s", want, stdout.String())
		}
	}
	cluster.Close()
	stdout.Reset()
	if status := program.Run(context.Background(), newRoot(), []string{"migrate", "check", "--config", file}, &stdout, &stderr); status != program.ExitFailed || !strings.Contains(stdout.String(), "PROBLEM  Kafka: brokers: ") || strings.Contains(stdout.String(), "topic metaflow.spans") {
		t.Errorf("without Kafka: status %d\n%s", status, stdout.String())
	}
}
