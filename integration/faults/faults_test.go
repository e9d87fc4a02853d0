package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/embedded/chengine"
)

func TestMain(m *testing.M) {
	chengine.MaybeRunChild()
	maybeServeBroker()
	os.Exit(m.Run())
}

// The short form of `make faults`: some faults on the embedded engines. METAFLOW_FAULTS_SEED draws others.
// Then the comparison itself is put to the test: rows are deleted and stored again behind its back.
func TestFaults(t *testing.T) {
	o := options{
		faults: 10, together: 3, seed: 1, engine: "embedded", rate: 400, items: 100, collectors: 2, settle: 4 * time.Minute, short: true,
		dir: t.TempDir(), bin: filepath.Join(t.TempDir(), "bin"), mounts: mayMount(), verbose: testing.Verbose(),
	}
	if text, ok := os.LookupEnv("METAFLOW_FAULTS_SEED"); ok {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		o.seed = seed
	}
	if err := build(filepath.Join("..", ".."), o.bin, ""); err != nil {
		t.Fatal(err)
	}
	judged := false
	o.afterwards = func(ctx context.Context, s *site) error {
		judged = true
		return s.testJudge(ctx, t)
	}
	r, err := runFaults(t.Context(), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	r.print(testWriter{t})
	if len(r.violations) > 0 {
		for _, name := range []string{"events.log", "spans-differences.txt", "flows-differences.txt", "commits.txt"} {
			text, err := os.ReadFile(filepath.Join(r.evidence, name))
			if err == nil {
				t.Logf("%s:\n%s", name, text)
			}
		}
		t.Fatalf("%d violations", len(r.violations))
	}
	if r.all.faults != o.faults || r.all.spans == 0 || r.flows == 0 || !judged {
		t.Errorf("%d faults, %d spans, %d flows, judged: %v", r.all.faults, r.all.spans, r.flows, judged)
	}
}

// testJudge takes the rows of one request away and stores those of another one twice.
func (s *site) testJudge(ctx context.Context, t *testing.T) error {
	const request = "bitShiftRight(reinterpretAsUInt64(reverse(unhex(span_id))), 12)"
	if err := s.store.exec(ctx,
		"DELETE FROM metaflow.spans_local WHERE "+request+" = 1",
		"INSERT INTO metaflow.spans_local SELECT * FROM metaflow.spans_local WHERE "+request+" = 2 SETTINGS insert_deduplicate = 0"); err != nil {
		return err
	}
	r := &result{kinds: make(map[string]*tally)}
	s.judge(ctx, r, nil)
	if r.all.lost != s.o.items || r.all.twice != s.o.items {
		t.Errorf("of %d spans lost and as many stored twice, %d and %d were found: %q", s.o.items, r.all.lost, r.all.twice, r.violations)
	}
	return nil
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// A link passes bytes on, cuts the connection after the byte that it was asked for, and
// holds all bytes while it hangs.
func TestLink(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	received := make(chan string)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			text, _ := io.ReadAll(conn)
			_ = conn.Close()
			received <- string(text)
		}
	}()
	l, err := newLink("test", "127.0.0.1:0", ln.Addr().String(), clickhouseWire) // ends in order
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	send := func(text string) {
		t.Helper()
		conn, err := net.Dial("tcp", l.addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		t.Cleanup(func() { _ = conn.Close() })
	}
	send("whole")
	if got := <-received; got != "whole" {
		t.Errorf("received %q", got)
	}
	l.cutAfter(3, up)
	send("halved")
	if got := <-received; got != "hal" {
		t.Errorf("received %q of a connection that was cut after 3 bytes", got)
	}
	l.hang()
	send("late")
	select {
	case got := <-received:
		t.Errorf("received %q over a link that hangs", got)
	case <-time.After(100 * time.Millisecond):
	}
	l.resume()
	if got := <-received; got != "late" {
		t.Errorf("received %q", got)
	}
}

// The steps of the protocol are found wherever the chunks begin.
func TestSnifferFindsSteps(t *testing.T) {
	request := func(key byte, body int) []byte {
		return append([]byte{0, 0, 0, byte(2 + body), 0, key}, make([]byte, body)...)
	}
	stream := append(append(request(1, 100), request(8, 50)...), request(12, 7)...)
	for chunk := 1; chunk < len(stream); chunk++ {
		var s sniffer
		found := 0
		for i := 0; i < len(stream); i += chunk {
			if s.see(kafkaWire, stream[i:min(i+chunk, len(stream))], up) == commitSent {
				found++
			}
		}
		if found != 1 {
			t.Errorf("in chunks of %d bytes, %d commits were found", chunk, found)
		}
		if got := s.see(kafkaWire, []byte("answer"), down); got != commitAnswer {
			t.Errorf("the answer is taken for %q", got)
		}
	}
	var s sniffer
	var steps []step
	for _, c := range []struct {
		d    direction
		text string
	}{{up, "SELECT 1"}, {down, "1"}, {up, "INSERT INTO t"}, {down, "columns"}, {up, "rows"}, {down, "done"}, {down, "more"}} {
		if found := s.see(clickhouseWire, []byte(c.text), c.d); found != noStep {
			steps = append(steps, found)
		}
	}
	if got, want := fmt.Sprint(steps), fmt.Sprint([]step{insertSent, rowsSent, insertAnswer}); got != want {
		t.Errorf("steps %s, want %s", got, want)
	}
}

// What the ledger calls lost and twice, and what not.
func TestLedgerCompare(t *testing.T) {
	l := newLedger("spans")
	for range 6 {
		l.begin(1, 10)
	}
	for _, number := range []int{1, 2, 3} {
		l.acknowledge(number, 0)
	}
	found := map[uint64]counts{
		1: {rows: 10, ids: 10},
		2: {rows: 7, ids: 7},   // three are lost
		3: {rows: 15, ids: 10}, // five are twice
		4: {rows: 4, ids: 4},   // in part, but it was not acknowledged
		5: {rows: 12, ids: 10}, // not acknowledged, but two are twice
	}
	got := make(map[int][2]int)
	for _, d := range l.compare(found) {
		got[d.number] = [2]int{d.lost, d.twice}
	}
	if want := map[int][2]int{2: {3, 0}, 3: {0, 5}, 5: {0, 2}}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("compare found %v, want %v", got, want)
	}
}
