package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/testkit/ports"
	"github.com/metaflowys/metaflow-server/pkg/testkit/wait"
	"github.com/metaflowys/metaflow-server/pkg/verify"
)

// runVerify runs metaflow-ctl verify against a server and returns its report and status.
func runVerify(t *testing.T, at addresses, args ...string) (report verify.Report, stderr string, status int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(binaries, "metaflow-ctl"),
		append([]string{"verify", "-o", "json", "--endpoint", "grpc://" + at.GRPC, "--clickhouse", at.ClickHouseNative}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &report); err != nil {
			t.Fatalf("%v in %s", err, out.String())
		}
	}
	return report, errs.String(), cmd.ProcessState.ExitCode()
}

// A healthy pipeline passes; then each thing that verify counts happens for real.
func TestVerify(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	conn := open(t, s.at.ClickHouseNative)
	exec := func(statement string) {
		t.Helper()
		if err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	r, stderr, status := runVerify(t, s.at, "--spans", "400", "--rate", "400", "--recheck", "1s", "--late", "1m")
	if status != 0 || r.Sent != 400 || r.Stored != 400 || !r.Right() || r.Delay.Max == 0 {
		t.Fatalf("status %d, %+v, %s", status, r, stderr)
	}

	// Span 6 is refused by the table, so it ends up among the dead letters; span 3 is
	// copied by SQL; no span is visible within a millisecond.
	exec("ALTER TABLE metaflow.spans_local ADD CONSTRAINT six CHECK span_id != '0000000000000006'")
	copied := make(chan error, 1)
	go func() {
		copied <- wait.Poll(time.Minute, nil, func() error {
			var n uint64
			const third = "FROM metaflow.spans_local WHERE span_id = '0000000000000003' AND start_time > now() - INTERVAL 1 HOUR"
			if err := conn.QueryRow(context.Background(), "SELECT count() "+third).Scan(&n); err != nil || n < 2 {
				return fmt.Errorf("%d spans 3, one a run, %w", n, err)
			}
			return conn.Exec(context.Background(), "INSERT INTO metaflow.spans_local SELECT * "+third+" ORDER BY start_time DESC LIMIT 1")
		})
	}()
	r, stderr, status = runVerify(t, s.at, "--spans", "40", "--rate", "1000", "--recheck", "10s", "--late", "1ms", "--lost-after", "20s")
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	if status != 1 || r.Sent != 40 || r.Acknowledged != 40 || r.Stored != 39 || r.Lost != 1 || r.Twice != 1 || r.Late != 39 || r.Damaged+r.Unverified != 0 {
		t.Errorf("status %d, %+v, %s", status, r, stderr)
	}
	for _, want := range []string{"lost", "0000000000000006", "twice", "0000000000000003"} {
		if !strings.Contains(strings.Join(r.Examples, "\n"), want) {
			t.Errorf("the examples lack %q: %q", want, r.Examples)
		}
	}
	if !strings.Contains(stderr, "1 spans are lost, 1 stored twice") {
		t.Errorf("stderr: %s", stderr)
	}
}

// Spans of the verifier are deleted day by day; others stay.
func TestVerifyCleans(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	conn := open(t, s.at.ClickHouseNative)
	if _, stderr, status := runVerify(t, s.at, "--spans", "8", "--recheck", "0s", "--late", "1m"); status != 0 {
		t.Fatal(stderr)
	}
	for days, service := range map[int]string{0: "shop", 2: "shop", 3: "metaflow-verify", 4: "metaflow-verify"} {
		if err := conn.Exec(t.Context(), fmt.Sprintf(`INSERT INTO metaflow.spans_local SELECT * REPLACE (start_time - INTERVAL %d DAY AS start_time, '%s' AS service_name)
			FROM (SELECT * FROM metaflow.spans_local WHERE start_time > now() - INTERVAL 1 DAY AND service_name = 'metaflow-verify')`, days, service)); err != nil {
			t.Fatal(err)
		}
	}
	if _, stderr, status := runVerify(t, s.at, "--spans", "8", "--recheck", "0s", "--late", "1m", "--keep", "24h"); status != 0 || strings.Contains(stderr, "stay") {
		t.Fatalf("status %d, %s", status, stderr)
	}
	s.eventually(time.Minute, func() error {
		var shop, ours, old uint64
		if err := conn.QueryRow(t.Context(), `SELECT countIf(service_name = 'shop'), countIf(service_name != 'shop'), countIf(service_name != 'shop' AND start_time < now() - INTERVAL 2 DAY)
			FROM metaflow.spans`).Scan(&shop, &ours, &old); err != nil {
			return err
		}
		if shop != 16 || ours != 16 || old != 0 {
			return fmt.Errorf("%d spans of shop, %d of the verifier, %d of them old; want 16, 16, 0", shop, ours, old)
		}
		return nil
	})
}

// What cannot be reached is named, at once where possible.
func TestVerifyNamesWhatFails(t *testing.T) {
	free := ports.FreeAddress(t)
	nothing := addresses{GRPC: free, ClickHouseNative: free}
	if _, stderr, status := runVerify(t, nothing); status != 1 || !strings.Contains(stderr, "--clickhouse") || !strings.Contains(stderr, free) {
		t.Errorf("without ClickHouse: status %d, %s", status, stderr)
	}
	if _, stderr, status := runVerify(t, nothing, "--rate", "0"); status != 2 || !strings.Contains(stderr, "verify.rate") {
		t.Errorf("a rate of 0: status %d, %s", status, stderr)
	}
	s := startStandalone(t, t.TempDir())
	if _, stderr, status := runVerify(t, s.at, "--database", "nowhere"); status != 1 || !strings.Contains(stderr, "--database") || strings.Contains(stderr, "sending") {
		t.Errorf("another database: status %d, %s", status, stderr)
	}
	at := s.at
	at.GRPC = free
	r, stderr, status := runVerify(t, at, "--spans", "20", "--lost-after", "2s", "--late", "1s", "--recheck", "0s")
	if status != 1 || r.Unanswered != 20 || !strings.Contains(stderr, free) {
		t.Errorf("without a server: status %d, %+v, %s", status, r, stderr)
	}
}

// A run that a signal ends early looks up what it sent, and does not claim success: a
// script would take the part for the whole.
func TestVerifyInterrupted(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	const note = "interrupted: looking for the spans"
	v := startProgram(t, "metaflow-ctl", "verify", "--endpoint", "grpc://"+s.at.GRPC, "--clickhouse", s.at.ClickHouseNative, "--spans", "100000", "--late", "1m", "--recheck", "2s")
	conn := open(t, s.at.ClickHouseNative)
	v.eventually(time.Minute, func() error {
		var n uint64
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM metaflow.spans").Scan(&n); err != nil || n == 0 {
			return fmt.Errorf("%d spans, %w", n, err)
		}
		return nil
	})
	status := v.terminate()
	out := v.output.String()
	if status != 1 || !strings.Contains(out, note) || !strings.Contains(out, "metaflow-ctl: interrupted after ") {
		t.Errorf("status %d after SIGTERM: %s", status, out)
	}
}

// For ever: metrics while it runs, and status 0 after SIGTERM.
func TestVerifyForever(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	listen := ports.FreeAddress(t)
	v := startProgram(t, "metaflow-ctl", "verify", "--forever", "--endpoint", "grpc://"+s.at.GRPC, "--clickhouse", s.at.ClickHouseNative, "--listen", listen, "--rate", "100", "--late", "1m")
	v.eventually(time.Minute, func() error {
		code, body, err := get("http://" + listen + "/metrics")
		if err != nil || code != 200 {
			return fmt.Errorf("/metrics: %d %w", code, err)
		}
		if !strings.Contains(body, `metaflow_verify_checked_spans_total{result="lost"} 0`) || strings.Contains(body, `{result="stored"} 0`) {
			return fmt.Errorf("nothing is stored yet:\n%s", body)
		}
		return nil
	})
	if code, body, err := get("http://" + listen + "/ready"); err != nil || code != 200 {
		t.Errorf("/ready: %d %s %v", code, body, err)
	}
	if status := v.terminate(); status != 0 {
		t.Errorf("status %d after SIGTERM: %s", status, v.output.String())
	}
}
