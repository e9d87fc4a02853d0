//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// outcome is the result of a case.
type outcome struct {
	Case     string   `json:"case"`
	Story    string   `json:"story"`
	Requests int      `json:"requests"`
	StallMS  int64    `json:"worst_stall_ms"` // how late the machine woke a program
	Failed   int      `json:"failed_requests"`
	Trouble  []said   `json:"network_trouble"`
	Missed   []string `json:"missed"`       // what a query had to name and did not
	False    []string `json:"false_alarms"` // what it named and had not to
	Unharmed int      `json:"unharmed_spans_with_verdict"`
	Spans    int      `json:"client_spans_examined"`
	Matched  int      `json:"client_spans_matched"`
	Lost     []string `json:"unmatched"` // why client spans did not match
	TraceMS  float64  `json:"trace_network_ms"`
	AllMS    float64  `json:"network_trouble_ms"`
	Known    []way    `json:"known,omitempty"`
}

// matchedPercent is how many client spans must find their flow.
const matchedPercent = 95

// wrong returns in which ways the answers were wrong.
func (o outcome) wrong() (ways []way) {
	if len(o.Missed) > 0 {
		ways = append(ways, missed)
	}
	if len(o.False) > 0 {
		ways = append(ways, falseAlarm)
	}
	if o.Unharmed > 0 {
		ways = append(ways, harmless)
	}
	if 100*o.Matched < matchedPercent*o.Spans {
		ways = append(ways, unmatched)
	}
	return ways
}

func (o outcome) right() bool { return len(o.wrong()) == 0 }

// mostStallMS is how late programs may wake for all false alarms to count: a tenth of
// the time after which the agent calls bytes unread.
const mostStallMS = 100

// lateWords are the verdicts that a program without CPU earns: it acknowledges,
// reads and answers late.
var lateWords = slices.Concat(slow, capped[:1], notRead, slowDNS)

// unexpected reports whether the answers were wrong in a way that is not known,
// and that the machine does not explain.
func (o outcome) unexpected() bool {
	return slices.ContainsFunc(o.wrong(), func(w way) bool { return !slices.Contains(o.Known, w) && !o.explained(w) })
}

// explained reports whether a machine that woke programs late explains all that is
// wrong in this way.
func (o outcome) explained(w way) bool {
	if o.StallMS <= mostStallMS || w == missed || w == unmatched {
		return false
	}
	return w == harmless || !slices.ContainsFunc(o.False, func(alarm string) bool {
		return !slices.ContainsFunc(lateWords, func(word string) bool { return strings.Contains(alarm, ": "+word) })
	})
}

const (
	defaultRate   = 12
	defaultAtOnce = 6
	slack         = time.Second // of the views' clocks
)

// runCases runs the selected cases, prints the table, and returns an error if a
// case is wrong.
func (l *lab) runCases(ctx context.Context) error {
	if l.visitAndSettle(ctx); ctx.Err() != nil {
		return ctx.Err()
	}
	var all []outcome
	var wrong []string
	fmt.Printf("%-18s %-6s %9s %6s %6s %8s %8s %10s %8s\n", "case", "right", "requests", "missed", "false", "matched", "trace ms", "trouble ms", "stall ms")
	for _, c := range cases() {
		if !l.o.run.MatchString(c.name) || l.o.short && c.short == 0 && l.o.run.String() == "" {
			continue
		}
		result, err := l.try(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		if l.o.short && result.unexpected() { // for want of a CPU: beside other tests, that is not seen in all its forms
			l.print(result)
			if result, err = l.try(ctx, c); err != nil {
				return fmt.Errorf("%s again: %w", c.name, err)
			}
		}
		all = append(all, result)
		l.print(result)
		if result.unexpected() {
			wrong = append(wrong, c.name)
		}
	}
	right, wantless, matched, spans, alarms := 0, 0, 0, 0, 0
	for _, o := range all {
		if o.right() {
			right++
		}
		if len(o.Missed) == 0 {
			wantless++
		}
		matched, spans, alarms = matched+o.Matched, spans+o.Spans, alarms+len(o.False)+o.Unharmed
	}
	fmt.Printf("%d of %d cases right; in %d nothing was missed; %d false alarms; %d of %d client spans matched\n", right, len(all), wantless, alarms, matched, spans)
	if l.o.json != "" {
		text, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(l.o.json, append(text, '\n'), 0o600); err != nil {
			return err
		}
	}
	if len(wrong) > 0 {
		return errors.New("wrong: " + strings.Join(wrong, ", "))
	}
	return nil
}

// visitAndSettle lets programs open their pools and agents learn usual times
// before the first case. What is usual at first is the lower quartile of the
// connections: a third as many as those of a case keep its fault unusual.
func (l *lab) visitAndSettle(ctx context.Context) {
	d, perSecond := 12*time.Second, 2.0*defaultRate
	if l.o.short {
		d, perSecond = 5*time.Second, defaultRate
	}
	l.visit(ctx, []string{order, order, priceOne, "/report?%d"}, perSecond, defaultAtOnce, d, 0)
	after(ctx, 3*time.Second) // the instrumentation sends spans every half second
}

// try runs one case.
func (l *lab) try(ctx context.Context, c trial) (o outcome, err error) {
	o = outcome{Case: c.name, Story: c.story, Known: c.known}
	for _, table := range []string{"spans_local", "flows_local"} {
		if err := l.conn.Exec(ctx, "TRUNCATE TABLE metaflow."+table); err != nil {
			return o, err
		}
	}
	d := time.Duration(c.seconds) * time.Second
	if l.o.short && c.short > 0 {
		d = time.Duration(c.short) * time.Second
	} else if l.o.long && c.long > 0 {
		d = time.Duration(c.long) * time.Second
	}
	if c.perSecond == 0 {
		c.perSecond = defaultRate
		if l.o.long && c.name == "clean" {
			c.perSecond = 20_000 / d.Seconds()
		}
	}
	if c.atOnce == 0 {
		c.atOnce = defaultAtOnce
	}
	l.faultFrom, l.faultUntil = time.Now(), time.Time{}
	if c.begin != nil {
		if err := c.begin(l); err != nil {
			return o, errors.Join(err, l.healAll())
		}
	}
	beside, stalled := make(chan error, 1), make(chan time.Duration, 1)
	running, stop := context.WithCancel(ctx)
	go func() { stalled <- stall(running) }()
	go func() {
		if c.during == nil {
			beside <- nil
			return
		}
		beside <- c.during(running, l, d)
	}()
	o.Requests, o.Failed = l.visit(ctx, c.paths, c.perSecond, c.atOnce, d, c.least)
	stop()
	o.StallMS = (<-stalled).Milliseconds()
	if err := errors.Join(<-beside, l.healAll()); err != nil {
		return o, err
	}
	if l.faultUntil.IsZero() {
		l.faultUntil = time.Now()
	}
	return o, l.judge(ctx, c, &o, time.Now())
}

// judge asks until the answers are right or all rows must have come.
func (l *lab) judge(ctx context.Context, c trial, o *outcome, end time.Time) error {
	report, err := time.ParseDuration(l.o.report)
	if err != nil {
		return err
	}
	dump, err := time.ParseDuration(l.o.dump)
	if err != nil {
		return err
	}
	// The last row of a connection comes after a report interval, and takes a
	// moment to be stored. Only the short form is content earlier.
	last := end.Add(report + 2*dump + 2*time.Second)
	if !l.o.short || len(c.want) == 0 {
		after(ctx, time.Until(last))
	}
	for again := l.o.short; ; again = time.Now().Before(last) {
		spans, err := l.ask(ctx, c, o)
		if err != nil {
			return err
		}
		if o.right() || !again || l.o.short && !o.unexpected() {
			return errors.Join(l.explain(*o, spans), l.keepFlows(ctx, *o))
		}
		if !after(ctx, time.Second) {
			return ctx.Err()
		}
	}
}

// ask asks both views, and compares the answers with the truth.
func (l *lab) ask(ctx context.Context, c trial, o *outcome) (spans []span, err error) {
	list, took, err := l.trouble(ctx)
	if err != nil {
		return nil, err
	}
	o.Trouble, o.AllMS = list, float64(took.Microseconds())/1000
	slowest, failed, others := 2, 2, 5
	if l.o.short {
		slowest, failed, others = 2, 1, 3
	}
	ids, err := l.traces(ctx, slowest, failed, others)
	if err != nil {
		return nil, err
	}
	var times []float64
	for _, id := range ids {
		some, took, err := l.trace(ctx, id)
		if err != nil {
			return nil, err
		}
		spans = append(spans, some...)
		times = append(times, float64(took.Microseconds())/1000)
	}
	if len(times) > 0 {
		slices.Sort(times)
		o.TraceMS = times[len(times)/2]
	}
	l.compare(c, o, spans)
	return spans, nil
}

// compare fills in what the answers missed and what they made up.
func (l *lab) compare(c trial, o *outcome, spans []span) {
	wanted := func(client, server, verdict string) bool {
		return slices.ContainsFunc(c.want, func(t truth) bool {
			return l.is(t.client, client) && l.is(t.server, server) && slices.Contains(t.causes, verdict)
		})
	}
	o.Missed, o.False, o.Lost, o.Spans, o.Matched, o.Unharmed = nil, nil, nil, 0, 0, 0
	named := 0
	var absent []string
	for _, t := range c.want {
		if t.may {
			continue
		}
		inTrouble := slices.ContainsFunc(o.Trouble, func(s said) bool {
			return l.is(t.client, s.Client) && l.is(t.server, s.Server) && slices.Contains(t.causes, s.Verdict)
		})
		inTrace := t.spanless || slices.ContainsFunc(spans, func(s span) bool {
			client, server := l.edge(s)
			// A span that failed before it had a peer says its own end only.
			return l.is(t.client, client) && (server == "" || l.is(t.server, server)) && slices.Contains(t.causes, s.Verdict)
		})
		if inTrouble {
			named++
		} else {
			absent = append(absent, fmt.Sprintf("network_trouble: %s -> %s %s", t.client, t.server, t.causes[0]))
		}
		if inTrace {
			named++
		} else {
			absent = append(absent, fmt.Sprintf("trace_network: %s -> %s %s", t.client, t.server, t.causes[0]))
		}
	}
	if !c.anyOf || named == 0 {
		o.Missed = absent
	}
	for _, s := range o.Trouble {
		if !wanted(s.Client, s.Server, s.Verdict) {
			o.False = append(o.False, "network_trouble: "+s.String())
		}
	}
	falseSpans := map[string]int{}
	lost := map[string]int{}
	for _, s := range spans {
		client, server := l.edge(s)
		if s.Kind == "client" {
			o.Spans++
			if s.accounted() {
				o.Matched++
			} else {
				lost[fmt.Sprintf("%s %s: %s", s.Service, s.Name, s.Unmatched)]++
			}
		}
		if s.Verdict == "" || s.Verdict == "network clean" {
			continue
		}
		switch {
		case !wanted(client, server, s.Verdict) && (server != "" || !c.fails(client, s.Verdict)):
			falseSpans[fmt.Sprintf("trace_network: %s -> %s: %s", client, server, s.Verdict)]++
		case s.Start.Add(time.Duration(s.DurationNS)).Before(l.faultFrom.Add(-2*slack)) || s.Start.After(l.faultUntil.Add(2*slack)):
			falseSpans[fmt.Sprintf("trace_network: %s -> %s: %s, not in the time of the fault", client, server, s.Verdict)]++
		case s.unharmed():
			o.Unharmed++
		}
	}
	for text, n := range falseSpans {
		o.False = append(o.False, fmt.Sprintf("%s (%d spans)", text, n))
	}
	for text, n := range lost {
		o.Lost = append(o.Lost, fmt.Sprintf("%s (%d spans)", text, n))
	}
	slices.Sort(o.False)
	slices.Sort(o.Lost)
}

// fails reports whether a client has trouble of this kind with any server: a
// span that failed before it had a peer names none.
func (c trial) fails(client, verdict string) bool {
	return slices.ContainsFunc(c.want, func(t truth) bool { return t.client == client && slices.Contains(t.causes, verdict) })
}

func (l *lab) print(o outcome) {
	word := "yes"
	switch {
	case o.unexpected():
		word = "NO"
	case !o.right() && len(o.Known) > 0:
		word = "known"
	case !o.right():
		word = "busy"
	}
	matched := "-"
	if o.Spans > 0 {
		matched = fmt.Sprintf("%.0f%%", 100*float64(o.Matched)/float64(o.Spans))
	}
	fmt.Printf("%-18s %-6s %9s %6d %6d %8s %8.0f %10.0f %8d\n", o.Case, word, fmt.Sprintf("%d/%d", o.Requests-o.Failed, o.Requests), len(o.Missed), len(o.False)+o.Unharmed, matched, o.TraceMS, o.AllMS, o.StallMS)
	for _, m := range o.Missed {
		fmt.Println("    missed    ", m)
	}
	for _, m := range o.False {
		fmt.Println("    false     ", m)
	}
	if o.Unharmed > 0 {
		fmt.Printf("    unharmed   %d client spans have a verdict that did them no harm\n", o.Unharmed)
	}
	if 100*o.Matched < matchedPercent*o.Spans {
		for _, m := range o.Lost {
			fmt.Println("    unmatched ", m)
		}
	}
}

// explain shows what the views said, on the terminal with -v, in a file with
// -keep.
func (l *lab) explain(o outcome, spans []span) error {
	var text strings.Builder
	for _, s := range o.Trouble {
		fmt.Fprintln(&text, "    trouble:", s)
	}
	for _, s := range spans {
		client, server := l.edge(s)
		fmt.Fprintf(&text, "    %s %s %-6s %s -> %s %q %.1f ms gap %.1f ms failed=%t matched=%q unmatched=%q verdict=%q %s %s %s\n", s.Start.Format("15:04:05.000"), s.Trace[:6],
			s.Kind, client, server, s.Name, float64(s.DurationNS)/1e6, float64(s.GapNS)/1e6, s.Failed, s.Matched, s.Unmatched, s.Verdict, s.Seen, s.Evidence, s.Why)
	}
	if l.o.verbose {
		fmt.Print(&text)
	}
	if l.o.keep == "" {
		return nil
	}
	fmt.Fprintf(&text, "fault from %s until %s\n", l.faultFrom.UTC().Format("15:04:05.000"), l.faultUntil.UTC().Format("15:04:05.000"))
	return os.WriteFile(filepath.Join(l.o.keep, "case-"+o.Case+".txt"), []byte(text.String()), 0o600)
}

// keepFlows writes the flow rows to a file, with -keep.
func (l *lab) keepFlows(ctx context.Context, o outcome) error {
	if l.o.keep == "" {
		return nil
	}
	rows, err := l.conn.Query(ctx, `SELECT concat(toString(time), ' from ', toString(start_time), ' ', toString(role), ' ', toString(protocol), ' ', process, ' ',
			replaceOne(toString(ip), '::ffff:', ''), ':', toString(port), ' ', peer_name, ' ', replaceOne(toString(peer_ip), '::ffff:', ''), ':', toString(peer_port), ' ',
			toString(state), ' ', toString(end_reason), ' ',
			arrayStringConcat(arrayMap(x -> concat(x.1, '=', toString(x.2)), arrayFilter(x -> x.2 != 0, [
				('connections', toUInt64(connections)), ('connect_failures', toUInt64(connect_failures)), ('refused', toUInt64(refused)), ('resets', toUInt64(resets)),
				('timeouts', toUInt64(timeouts)), ('gave_up', toUInt64(gave_up)), ('segments_sent', segments_sent), ('retransmits', retransmits), ('accept_queue_full', toUInt64(accept_queue_full)),
				('unread_bytes', toUInt64(unread_bytes)), ('rtt_us', toUInt64(rtt_us)), ('rtt_max_us', toUInt64(rtt_max_us)), ('rtt_usual_us', toUInt64(rtt_usual_us)),
				('window_limited_us', receive_window_limited_us), ('busy_us', busy_us), ('queries', toUInt64(queries)), ('query_failures', toUInt64(query_failures)),
				('queries_unanswered', toUInt64(queries_unanswered)), ('query_time_max_us', toUInt64(query_time_max_us))])), ' '),
			' ', if(translated_peer_ip != toIPv6('::'), concat('peer is ', toString(translated_peer_ip)), ''), if(translated_ip != toIPv6('::'), concat('seen as ', toString(translated_ip)), ''))
		FROM metaflow.flows ORDER BY time, ip, port`)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	var text strings.Builder
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return err
		}
		fmt.Fprintln(&text, line)
	}
	return errors.Join(rows.Err(), os.WriteFile(filepath.Join(l.o.keep, "flows-"+o.Case+".txt"), []byte(text.String()), 0o600))
}
