package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
)

// A Kafka user who can log in but has no rights must not make a server ready: a rollout
// would replace every replica that works. /ready says what is missing.
func TestNotReadyWithoutRights(t *testing.T) {
	allow := func(operations ...kmsg.ACLOperation) (acls []kfake.ACL) {
		for _, operation := range operations {
			acls = append(acls, kfake.ACL{Resource: kmsg.ACLResourceTypeTopic, Name: "metaflow.", Pattern: kmsg.ACLResourcePatternTypePrefixed, Operation: operation, Allow: true})
		}
		return acls
	}
	ready := map[string]string{"kafka": "", "access": "", "port": ""}
	tests := map[string]struct {
		acls  []kfake.ACL
		roles []string
		want  map[string]string // by check, a part of the cause; empty if the check passes
	}{
		"no rights": {nil, allRoles, map[string]string{
			"kafka": "", "access": "topic metaflow.spans", "port": "create topics: create topic metaflow.", "writer": "not started yet: create topics: create topic metaflow.",
		}},
		"may not write": {
			allow(kmsg.ACLOperationCreate, kmsg.ACLOperationRead),
			[]string{roleGateway, roleControl},
			map[string]string{"kafka": "", "access": `topic metaflow.spans: the user "metaflow" (kafka.sasl.username) lacks the right Write`, "port": ""},
		},
		"no right to join the groups": {
			allow(kmsg.ACLOperationCreate, kmsg.ACLOperationRead, kmsg.ACLOperationWrite), allRoles,
			map[string]string{"kafka": "", "access": "consumer group metaflow-writer", "port": ""},
		},
		"all rights of a gateway": {
			allow(kmsg.ACLOperationCreate, kmsg.ACLOperationRead, kmsg.ACLOperationWrite), []string{roleGateway}, ready,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.User("PLAIN", "metaflow", "secret", tc.acls...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			cfg := defaultServer()
			cfg.Roles = tc.roles
			cfg.GRPC.Listen, cfg.HTTP.Listen = "127.0.0.1:0", "127.0.0.1:0"
			cfg.Query.HTTPListen, cfg.Query.GRPCListen = "127.0.0.1:0", "127.0.0.1:0"
			cfg.Kafka.Brokers, cfg.Kafka.Replication = cluster.ListenAddrs(), 1
			cfg.Kafka.SASL = kafka.SASL{Mechanism: "plain", Username: "metaflow", Password: "secret"}
			a := runApp(t, cfg)
			wait.NoError(t, func() error { return hasChecks(a.http.Addr().String(), tc.want) })
		})
	}
}

// hasChecks compares some checks of /ready with the causes wanted.
func hasChecks(addr string, want map[string]string) error {
	resp, err := http.Get("http://" + addr + "/ready")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var verdict struct {
		Checks []struct {
			Name, Cause string
			OK          bool
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&verdict); err != nil {
		return err
	}
	seen := 0
	for _, c := range verdict.Checks {
		cause, asked := want[c.Name]
		if !asked {
			continue
		}
		seen++
		if c.OK != (cause == "") || !strings.Contains(c.Cause, cause) {
			return fmt.Errorf("check %s: ok is %t with the cause %q, want %q in it", c.Name, c.OK, c.Cause, cause)
		}
	}
	if seen != len(want) {
		return fmt.Errorf("only %d checks of %d are there", seen, len(want))
	}
	return nil
}
