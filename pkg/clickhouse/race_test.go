//go:build race

package clickhouse

func init() { raceEnabled = true }
