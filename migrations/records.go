package migrations

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// records number the fields of tuples and arrays in one file.
//
// ClickHouse analyzes a query twice before it reads a row, and named tuples account for
// most of that time. So the server gets positions (a.1.12) and the file has names
// (a.s.peer_port): it declares the fields of a tuple, in order, and the names that hold
// one.
//
//	{{record "s, x" `
//	    id = toString(span_id)
//	    peer_port
//	`}}
//
// From then on {{values "s"}} is toString(span_id), peer_port, and s.peer_port
// is s.2. {{array ...}} does the same for arrays, whose elements are s[2].
// A field with the name of another record holds that record.
type records []record

type record struct {
	holders []string
	fields  []string
	values  []string
	array   bool
}

func (r *records) tuple(holders, fields string) (string, error) {
	return r.declare(holders, fields, false)
}

func (r *records) array(holders, fields string) (string, error) {
	return r.declare(holders, fields, true)
}

// declare adds a record. It renders as nothing.
func (r *records) declare(holders, fields string, array bool) (string, error) {
	rec := record{array: array}
	for name := range strings.SplitSeq(holders, ",") {
		rec.holders = append(rec.holders, strings.TrimSpace(name))
	}
	for line := range strings.Lines(fields) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--") {
			continue
		}
		field, value, ok := strings.Cut(line, " = ")
		field, value = strings.TrimSpace(field), strings.TrimSpace(value)
		if !ok {
			value = field
		}
		if slices.Contains(rec.fields, field) {
			return "", fmt.Errorf("record %s has two fields %s", holders, field)
		}
		rec.fields, rec.values = append(rec.fields, field), append(rec.values, value)
	}
	*r = append(*r, rec)
	return "", nil
}

// valuesOf lists the values of a record's fields, in order.
func (r *records) valuesOf(holder string) (string, error) {
	for _, rec := range *r {
		if slices.Contains(rec.holders, holder) {
			return strings.Join(rec.values, ", "), nil
		}
	}
	return "", fmt.Errorf("no record is held by %s", holder)
}

var fieldPath = regexp.MustCompile(`\b([a-z_]+)((?:\.[a-z_]+)+)\b`)

// number replaces the names of fields by their positions. It keeps names that hold no
// record: they are table columns.
func (r *records) number(sql string) (string, error) {
	if len(*r) == 0 {
		return sql, nil
	}
	var wrong error
	numbered := fieldPath.ReplaceAllStringFunc(sql, func(match string) string {
		names := strings.Split(match, ".")
		for i, name := range names[:len(names)-1] {
			if r.holds(name) {
				positions, err := r.positions(name, names[i+1:])
				if err != nil && wrong == nil {
					wrong = err
				}
				return strings.Join(names[:i+1], ".") + positions
			}
		}
		return match
	})
	return numbered, wrong
}

func (r *records) holds(name string) bool {
	return slices.ContainsFunc(*r, func(rec record) bool { return slices.Contains(rec.holders, name) })
}

// positions returns the path of fields below a holder. A name may hold records of several
// kinds in different places; the field selects the kind.
func (r *records) positions(holder string, fields []string) (string, error) {
	if len(fields) == 0 {
		return "", nil
	}
	for _, rec := range *r {
		i := slices.Index(rec.fields, fields[0])
		if i < 0 || !slices.Contains(rec.holders, holder) {
			continue
		}
		rest := ""
		if len(fields) > 1 {
			var err error
			if rest, err = r.positions(fields[0], fields[1:]); err != nil {
				return "", err
			}
		}
		if rec.array {
			return "[" + strconv.Itoa(i+1) + "]" + rest, nil
		}
		return "." + strconv.Itoa(i+1) + rest, nil
	}
	return "", fmt.Errorf("%s has no field %s", holder, fields[0])
}
