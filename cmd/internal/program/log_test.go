package program

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestDurationsHaveUnit(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		Log{Level: "info", Format: format}.Logger(&out).Info("retrying", slog.Duration("after", 1500*time.Millisecond))
		if !strings.Contains(strings.ReplaceAll(out.String(), `"`, ""), "1.5s") {
			t.Errorf("%s: %s", format, out.String())
		}
	}
}

// A warning every second is written at once and every five minutes, and the
// counts tell how many there were.
func TestRepeatedWarningsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := Log{Level: "info", Format: "json"}.Logger(&out)
		for i := range 601 {
			log.Warn("cannot reach server", slog.Any("error", errors.New("dial :2003"+string(rune('0'+i%10)))), slog.Int("attempt", i))
			time.Sleep(time.Second) //nolint:forbidigo // the clock of the bubble
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 3 || strings.Contains(lines[0], "repeated") ||
			!strings.Contains(lines[1], `"repeated":299`) || !strings.Contains(lines[2], `"repeated":299`) {
			t.Errorf("lines:\n%s", out.String())
		}
	})
}

// Another cause, another subject and another message are written at once.
func TestDifferentWarningsAreWritten(t *testing.T) {
	var out bytes.Buffer
	log := Log{Level: "info", Format: "json"}.Logger(&out)
	for range 2 {
		log.Warn("cannot reach server", slog.String("cause", "refused"))
		log.Warn("cannot reach server", slog.String("cause", "timeout"))
		log.Warn("cannot open listener", slog.String("cause", "refused"))
		log.With(slog.String("spool", "flows")).Warn("cannot reach server", slog.String("cause", "refused"))
		log.Info("connected")
	}
	if got := strings.Count(out.String(), "\n"); got != 6 {
		t.Errorf("%d lines, want four warnings and two others:\n%s", got, out.String())
	}
}

// Warnings without end take no memory without end.
func TestRepeatsAreBounded(t *testing.T) {
	r := &repeats{seen: map[string]*repeat{}, now: time.Now}
	for i := range 3 * maxRepeating {
		r.take(strings.Repeat("x", i))
	}
	if len(r.seen) > maxRepeating {
		t.Errorf("%d keys kept", len(r.seen))
	}
}
