package migrations

import (
	"strings"
	"testing"
)

func TestFieldsAreNumbered(t *testing.T) {
	var r records
	declare := func(declare func(string, string) (string, error), holders, fields string) {
		t.Helper()
		if text, err := declare(holders, fields); text != "" || err != nil {
			t.Fatal(text, err)
		}
	}
	declare(r.tuple, "s, x", "id = toString(id)\nport\n")
	declare(r.array, "counters", "flows = 1\n-- a remark\nresets = f.x * f.resets")
	declare(r.tuple, "a, x", "s\ncounters\nother_id")
	tests := map[string]string{
		"a.other_id AS other_id":       "a.3 AS other_id",
		"c.s.port != 0":                "c.s.2 != 0",
		"a.s.id = x.id":                "a.1.1 = x.1",
		"x.other_id":                   "x.3", // the field tells which record x holds
		"a.counters.resets + f.resets": "a.2[2] + f.resets",
		"any(c.s) AS s":                "any(c.s) AS s",
		"1.5 + m.flows":                "1.5 + m.flows",
	}
	for sql, want := range tests {
		if got, err := r.number(sql); got != want || err != nil {
			t.Errorf("number(%s) = %s, %v, want %s", sql, got, err, want)
		}
	}
	for sql, want := range map[string]string{"a.s.prot": "s has no field prot", "a.flows": "a has no field flows"} {
		if _, err := r.number(sql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("number(%s): %v, want %s", sql, err, want)
		}
	}
	for holder, want := range map[string]string{"s": "toString(id), port", "counters": "1, f.x * f.resets"} {
		if got, err := r.valuesOf(holder); got != want || err != nil {
			t.Errorf("valuesOf(%s) = %s, %v", holder, got, err)
		}
	}
	if _, err := r.valuesOf("b"); err == nil {
		t.Error("values of nothing")
	}
	if _, err := r.tuple("d", "one\none"); err == nil {
		t.Error("a field was declared twice")
	}
}
