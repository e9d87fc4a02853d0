package spool_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/agent/spool"
)

// The killed process is this test binary, run with this variable.
const childDir = "SPOOL_CHILD_DIR"

const childAdders = 4

// appendForEver appends entries from several goroutines and prints the number
// of each acknowledged one. It also takes entries and marks them done, so that
// the kill interrupts that too.
func appendForEver(dir string) {
	s, err := spool.Open(spool.Config{Dir: dir, MaxBytes: 256 * mib}, spool.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	start, _ := strconv.Atoi(os.Getenv("SPOOL_CHILD_START"))
	var adders sync.WaitGroup
	for a := range childAdders {
		adders.Go(func() {
			for i := start + a; ; i += childAdders {
				if err := s.Append(context.Background(), entry(i, i*7919%60_000)); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Printf("added %d\n", i)
			}
		})
	}
	adders.Go(func() {
		for {
			e, err := s.Next(context.Background())
			if err != nil {
				return
			}
			var n int
			if _, err := fmt.Sscanf(string(e.Body[:min(len(e.Body), 30)]), "entry %d", &n); err != nil {
				fmt.Printf("garbage %q\n", e.Body[:min(len(e.Body), 30)])
			}
			if n%3 != 0 {
				s.Return(e)
				continue
			}
			fmt.Printf("done %d\n", n) // from here on it may be missing
			if err := s.Done(e); err != nil {
				return
			}
		}
	})
	adders.Wait()
}

// A process is killed while it appends. Every acknowledged entry survives, in
// the order of its goroutine.
func TestKilledInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	acknowledged, done := map[int]bool{}, map[int]bool{}
	highest := 0
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir, "SPOOL_CHILD_START="+strconv.Itoa(highest+childAdders))
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var what string
			var i int
			if _, err := fmt.Sscanf(lines.Text(), "%s %d", &what, &i); err != nil {
				t.Fatalf("the child printed %q", lines.Text())
			}
			switch what {
			case "added":
				acknowledged[i] = true
				highest = max(highest, i)
			case "done":
				done[i] = true
			}
			if n == 30+round*37 {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait()           // the status reports the kill
		highest += 2 * childAdders // entries added but not yet acknowledged may survive
	}
	s := open(t, dir, 256*mib)
	seen := map[int]bool{}
	last := map[int]int{}
	for _, e := range drain(t, s) {
		n := number(t, e)
		if !same(e, spool.Entry{Body: entry(n, n*7919%60_000).Body, Resend: true, Received: entry(n, 0).Received}) {
			t.Errorf("entry %d changed", n)
		}
		if before, ok := last[n%childAdders]; ok && before >= n {
			t.Errorf("entry %d handed out after %d", n, before)
		}
		last[n%childAdders] = n
		seen[n] = true
	}
	for n := range acknowledged {
		if !seen[n] && !done[n] {
			t.Errorf("acknowledged entry %d was lost", n)
		}
	}
	if len(acknowledged) < rounds*10 {
		t.Errorf("only %d entries were acknowledged", len(acknowledged))
	}
}
