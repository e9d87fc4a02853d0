package kafka_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/pkg/kafka"
	"github.com/metaflowys/metaflow-server/pkg/tlsconfig"
)

func TestDefaultConfigIsValid(t *testing.T) {
	if err := kafka.DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestReplicationIsBounded(t *testing.T) {
	cfg := kafka.DefaultConfig()
	cfg.Replication = 99999
	if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), "replication: 99999 is more than 15") {
		t.Errorf("Validate = %v", err)
	}
}

func TestValidateNamesEveryProblem(t *testing.T) {
	cfg := kafka.Config{
		Brokers:     []string{"kafka", "kafka:", ":9092", "kafka:9092"},
		Compression: "brotli", MaxRecordBytes: 1, Retention: time.Second,
		SASL: kafka.SASL{Mechanism: "gssapi"},
		TLS:  tlsconfig.Client{CertFile: "cert.pem"},
	}
	want := []string{
		`brokers[0]: "kafka" is not host:port such as kafka-1:9092 or [2001:db8::1]:9092`,
		`brokers[1]: "kafka:" is not host:port such as kafka-1:9092 or [2001:db8::1]:9092`,
		`brokers[2]: ":9092" is not host:port such as kafka-1:9092 or [2001:db8::1]:9092`,
		"partitions: 0 is not positive",
		"replication: 0 is not positive",
		"retention: 1s is less than a minute",
		`compression: "brotli" is not none, gzip, snappy, lz4 or zstd`,
		"max_record_bytes: 1 is not between 1024 and 33554432",
		"produce_timeout: 0s is less than 100ms",
		`sasl.mechanism: "gssapi" is not plain, scram-sha-256 or scram-sha-512`,
		`sasl.username: it is empty, but sasl.mechanism is "gssapi"`,
		`sasl.password: it is empty, but sasl.mechanism is "gssapi"; set it by METAFLOW_KAFKA_SASL_PASSWORD`,
		`tls.cert_file and tls.key_file: "cert.pem" and "", but one needs the other`,
	}
	if diff := cmp.Diff(want, strings.Split(cfg.Validate().Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
