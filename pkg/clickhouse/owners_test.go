package clickhouse

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// All addresses of one network namespace of one agent have one owner, and others
// have another: also the address that two hosts have alike, each in its own
// network.
func TestOwnersOfAddresses(t *testing.T) {
	cfg := testConfig(t)
	d := migrated(t, cfg)
	for i, row := range []struct {
		agent     string
		namespace int
		ip        string
	}{
		{"one", 7, "10.0.0.1"},
		{"one", 7, "10.0.0.1"},
		{"one", 7, "fd00::1"},
		{"one", 8, "10.0.0.2"},
		{"two", 7, "172.17.0.2"},
		{"one", 9, "172.17.0.2"},
	} {
		mustExec(t, d, fmt.Sprintf("INSERT INTO %s.flows_local (time, agent_id, network_namespace, ip, connection) VALUES (fromUnixTimestamp64Nano(%d), '%s', %d, toIPv6('%s'), %d)",
			cfg.Database, now.UnixNano(), row.agent, row.namespace, address(row.ip), i+1))
	}
	mustExec(t, d, "OPTIMIZE TABLE "+cfg.Database+".flow_addresses_local FINAL")
	got := queryText(t, d, `SELECT arrayStringConcat(arraySort(groupArray(concat(replaceOne(toString(ip), '::ffff:', ''), ' ', toString(flows)))), ', '),
			transform(owner, [cityHash64('one', 7::UInt64), cityHash64('one', 8::UInt64), cityHash64('one', 9::UInt64), cityHash64('two', 7::UInt64)], ['one 7', 'one 8', 'one 9', 'two 7'], 'unknown') AS of
		FROM `+cfg.Database+`.flow_addresses_local GROUP BY owner ORDER BY of`)
	want := "10.0.0.1 2, fd00::1 1\tone 7\n10.0.0.2 1\tone 8\n172.17.0.2 1\tone 9\n172.17.0.2 1\ttwo 7"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses by owner (-want +got):\n%s", diff)
	}
}
