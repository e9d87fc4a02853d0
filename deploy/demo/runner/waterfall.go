package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// maxRows bounds a waterfall to a length that people still scroll through.
const maxRows = 70

// Column widths. The tree and the bars share the rest.
const (
	serviceWidth  = 21
	durationWidth = 9
	peerWidth     = 22
	columnGaps    = 5
	restWidth     = serviceWidth + durationWidth + 1 + peerWidth + columnGaps
)

func (t *terminal) barWidth() int  { return (t.width - restWidth) * 45 / 100 }
func (t *terminal) treeWidth() int { return t.width - restWidth - t.barWidth() }

// call is a row of the waterfall: a span, or a client span with the server span
// that answered it. The outer bar is the client's wait; the name and the inner
// bar are the server's.
type call struct {
	outer, inner *span
	children     []*call
}

func (c *call) failed() bool { return c.outer.failed || c.inner.failed }

// waterfall prints a trace as a tree with bars over time.
func (t *terminal) waterfall(spans []span) {
	roots := callTree(spans)
	if len(roots) == 0 {
		return
	}
	from, to := extent(spans)
	rows := 0
	count(roots, &rows)
	t.printf("%s\n", t.style(dim, fmt.Sprintf("%s spans in %d rows: one row shows a call's client and server span; %s the caller waits, %s the callee works.",
		thousands(len(spans)), rows, "░", "█")))
	t.println(t.style(bold, t.row("SERVICE", "SPAN", scale(to.Sub(from), t.barWidth()), "DURATION", " ", "PROTOCOL, PEER")))
	left := maxRows
	for _, root := range roots {
		t.subtree(root, "", "", from, to, &left)
	}
	if rows > maxRows {
		t.printf("… and %d more rows\n", rows-maxRows)
	}
	t.failures(roots)
}

// subtree prints c with its prefix, and its children with the prefix of their
// line.
func (t *terminal) subtree(c *call, prefix, line string, from, to time.Time, left *int) {
	if *left == 0 {
		return
	}
	*left--
	t.call(c, prefix, from, to)
	for i, child := range c.children {
		if i == len(c.children)-1 {
			t.subtree(child, line+"└ ", line+"  ", from, to, left)
		} else {
			t.subtree(child, line+"├ ", line+"│ ", from, to, left)
		}
	}
}

func (t *terminal) call(c *call, prefix string, from, to time.Time) {
	mark, barStyle := " ", cyan
	if c.failed() {
		mark, barStyle = "✗", red
	}
	row := t.row(c.inner.service, prefix+title(c), "\x00", milliseconds(c.outer.duration), mark, peerOf(c))
	before, after, _ := strings.Cut(row, "\x00"+strings.Repeat(" ", t.barWidth()-1))
	if c.failed() {
		before, after = t.style(red, before), t.style(red, after)
	}
	t.println(before + t.style(barStyle, bar(c, from, to, t.barWidth())) + after)
}

// row formats the columns of a line, without trailing spaces.
func (t *terminal) row(service, tree, bar, duration, mark, peer string) string {
	line := fit(service, serviceWidth) + " " + fit(tree, t.treeWidth()) + " " + fit(bar, t.barWidth()) + " " +
		fmt.Sprintf("%*s", durationWidth, duration) + " " + mark + " " + cut(peer, peerWidth)
	return strings.TrimRight(line, " ")
}

// title returns the span's name without the service's name, plus the endpoint
// if the name does not contain it.
func title(c *call) string {
	name := c.inner.name
	if rpc, method, ok := strings.Cut(name, "/"); ok && rpc != "" && !strings.Contains(rpc, " ") {
		return method
	}
	if e := c.inner.endpoint; e != "" && !strings.Contains(name, e) {
		name += " " + e
	}
	return name
}

func peerOf(c *call) string {
	return strings.TrimSpace(c.outer.protocol + " " + c.outer.peer)
}

// bar draws the time of the call on a scale between the two times.
func bar(c *call, from, to time.Time, width int) string {
	cells := slices.Repeat([]rune{' '}, width)
	paint(cells, c.outer, '░', from, to)
	paint(cells, c.inner, '█', from, to)
	return string(cells)
}

// paint fills the cells of a span; even the shortest span gets one.
func paint(cells []rune, s *span, with rune, from, to time.Time) {
	cell := func(at time.Time) int {
		total := max(to.Sub(from), 1)
		return int(float64(at.Sub(from)) / float64(total) * float64(len(cells)))
	}
	first := min(max(cell(s.start), 0), len(cells)-1)
	last := min(max(cell(s.start.Add(s.duration)), first+1), len(cells))
	for i := first; i < last; i++ {
		cells[i] = with
	}
}

// failures explains the failure marks.
func (t *terminal) failures(calls []*call) {
	for _, c := range calls {
		t.failures(c.children)
		for _, s := range []*span{c.inner, c.outer} {
			if s.failed && s.message != "" {
				t.println(t.style(red, cut(fmt.Sprintf("✗ %s %s: %s", c.inner.service, title(c), s.message), t.width)))
				break
			}
		}
	}
}

// callTree joins the spans by their parents, sorted by start. A span whose
// parent is missing is a root.
func callTree(spans []span) []*call {
	byParent := map[string][]*span{}
	known := map[string]bool{}
	for i := range spans {
		known[spans[i].id] = true
	}
	for i := range spans {
		s := &spans[i]
		parent := s.parent
		if !known[parent] {
			parent = ""
		}
		byParent[parent] = append(byParent[parent], s)
	}
	return below("", byParent)
}

func below(parent string, byParent map[string][]*span) (out []*call) {
	children := byParent[parent]
	slices.SortStableFunc(children, func(a, b *span) int { return a.start.Compare(b.start) })
	for _, s := range children {
		c := &call{outer: s, inner: s}
		if served := byParent[s.id]; s.kind == "client" && len(served) == 1 && served[0].kind == "server" {
			c.inner = served[0]
		}
		c.children = below(c.inner.id, byParent)
		out = append(out, c)
	}
	return out
}

func count(calls []*call, n *int) {
	for _, c := range calls {
		*n++
		count(c.children, n)
	}
}

// extent returns the time range that the spans cover.
func extent(spans []span) (from, to time.Time) {
	for i, s := range spans {
		end := s.start.Add(s.duration)
		if i == 0 || s.start.Before(from) {
			from = s.start
		}
		if i == 0 || end.After(to) {
			to = end
		}
	}
	return from, to
}

// scale labels both ends of the bars.
func scale(total time.Duration, width int) string {
	end := milliseconds(total)
	return "0" + strings.Repeat(" ", max(1, width-1-utf8.RuneCountInString(end))) + end
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// fit pads or cuts text to exactly width characters.
func fit(text string, width int) string {
	text = cut(text, width)
	return text + strings.Repeat(" ", width-utf8.RuneCountInString(text))
}

// cut shortens text that is too wide and ends it with an ellipsis.
func cut(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}
