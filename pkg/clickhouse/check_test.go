package clickhouse

import (
	"slices"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
)

// problem returns the problem that a check found at a place, and its fix. The place may be
// the beginning of where, or its part before a comma: 127.0.0.1:1 is not 127.0.0.1:12.
func problem(findings []Finding, check, where string) (problem, fix string) {
	for _, f := range findings {
		if f.Check == check && strings.Contains(f.Where+",", where+",") {
			return f.Problem, f.Fix
		}
	}
	return "not checked", ""
}

func TestCheckOfOneServer(t *testing.T) {
	cfg := testConfig(t)
	for _, f := range openDB(t, cfg).Check(t.Context(), 3) {
		if f.Problem != "" {
			t.Errorf("%+v", f)
		}
	}
	cfg.Addresses = []string{"127.0.0.1:1"}
	if text, fix := problem(openDB(t, cfg).Check(t.Context(), 3), "ClickHouse", "127.0.0.1:1"); !strings.Contains(text, "refused") || !strings.Contains(fix, "clickhouse.addresses") {
		t.Errorf("nobody listens: %q, %q", text, fix)
	}
}

// A refused login would end the embedded engine.
func TestFixOfARefusedLogin(t *testing.T) {
	c := &checker{DB: openDB(t, testConfig(t))}
	if fix := c.reach(place{}, &ch.Exception{Code: proto.ErrAuthenticationFailed, Name: "DB::Exception", Message: "no"}); !strings.Contains(fix, "clickhouse.username") {
		t.Errorf("the fix is %q", fix)
	}
}

// Two engines without Keeper and macros, and an address where nobody listens.
func TestCheckNamesWhatAClusterLacks(t *testing.T) {
	cfg, _ := twoEmptyShards(t)
	findings := openDB(t, cfg).Check(t.Context(), 3)
	if text, _ := problem(findings, "ClickHouse", "127.0.0.1:1"); !strings.Contains(text, "refused") {
		t.Errorf("the dead address: %q", text)
	}
	for _, addr := range cfg.Addresses[1:] {
		for check, want := range map[string]string{"Keeper": "not configured", "macros": `shard is ""`, "grants": ""} {
			if text, _ := problem(findings, check, addr); !strings.Contains(text, want) || want == "" && text != "" {
				t.Errorf("%s at %s: %q, want %q", check, addr, text, want)
			}
		}
	}
	if text, _ := problem(findings, "insert_quorum", "shard 2"); !strings.Contains(text, "although Kafka keeps 3 copies") {
		t.Errorf("a single replica: %q", text)
	}
	cfg.InsertQuorum = "2"
	if text, fix := problem(openDB(t, cfg).Check(t.Context(), 1), "insert_quorum", "shard 1, 1 replicas"); !strings.Contains(text, "no insert can succeed") || !strings.Contains(fix, "auto") {
		t.Errorf("a quorum of more than all: %q, %q", text, fix)
	}
	cfg.Cluster = "nowhere"
	if text, _ := problem(openDB(t, cfg).Check(t.Context(), 1), "cluster", "nowhere"); !strings.Contains(text, "does not have it") {
		t.Errorf("an unknown cluster: %q", text)
	}
}

func TestReplicatedClusterPassesTheCheck(t *testing.T) {
	d := migratedCluster(t, replicated(t))
	d.cfg.InsertQuorum = "auto"
	findings := d.Check(t.Context(), 3)
	if i := slices.IndexFunc(findings, func(f Finding) bool { return f.Problem != "" }); i >= 0 {
		t.Errorf("%+v", findings[i])
	}
	for _, check := range []string{"ClickHouse", "Keeper", "macros", "grants"} {
		for _, addr := range d.cfg.Addresses {
			if text, _ := problem(findings, check, addr); text != "" {
				t.Errorf("%s at %s: %s", check, addr, text)
			}
		}
	}
	_, addrs := replicasOf(t, d)
	d.cfg.InsertQuorum = ""
	if text, fix := problem(d.Check(t.Context(), 3), "insert_quorum", "replicas"); len(addrs) > 1 && (!strings.Contains(text, "although Kafka keeps 3 copies") || !strings.Contains(fix, "auto")) {
		t.Errorf("without a quorum: %q, %q", text, fix)
	}
}
