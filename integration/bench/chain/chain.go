// Package chain starts the chains of programs that benchmarks of the server
// compare: a receiver that fills Kafka and a writer that empties it into
// ClickHouse. One chain is MetaFlow's, the other an OpenTelemetry Collector's.
package chain

import (
	"github.com/metaflowys/metaflow-server/integration/bench/measured"
)

// Site is where the chains run.
type Site struct {
	Dir        string // for configuration files
	Kafka      string // address of the broker
	ClickHouse *measured.ClickHouse
	Partitions int
	Verbose    bool // show what the programs log
}

// Chain is how one system is started.
type Chain struct {
	Name     string
	OTLP     string // address that the receiver listens on
	Receiver Start
	Writer   Start
	Table    string // database.table that holds the spans
	Once     bool   // no span may be stored twice
}

// Start starts a program, which serves metrics at ops if it can.
type Start func(ops string) (*measured.Process, error)

// Count is a statement that counts what is stored, without reading it.
func (c *Chain) Count() string { return "SELECT count() FROM " + c.Table }
