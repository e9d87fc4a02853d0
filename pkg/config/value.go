package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Every value, wherever it comes from, is text until it is parsed here; lists
// are several texts.

func (f field) isList() bool {
	return f.value.Kind() == reflect.Slice && !reflect.PointerTo(f.value.Type()).Implements(textUnmarshaler)
}

func (f field) typeName() string {
	if f.isList() {
		return "list of " + f.scalarName(f.value.Type().Elem())
	}
	return f.scalarName(f.value.Type())
}

func (f field) scalarName(t reflect.Type) string {
	switch {
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		return "text"
	case t == duration:
		return "duration"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if f.bytes {
			return "size"
		}
		return "whole number"
	case reflect.Float32, reflect.Float64:
		return "number"
	default:
		panic(fmt.Sprintf("config: %s has the unsupported type %s", f.key, t))
	}
}

// set parses texts into the field. On an error the field keeps its value. The
// error names the value, not the key.
func (f field) set(texts []string) error {
	if !f.isList() {
		if len(texts) != 1 {
			return fmt.Errorf("a list of %d values is not a %s", len(texts), f.typeName())
		}
		return f.parse(f.value, texts[0])
	}
	list := reflect.MakeSlice(f.value.Type(), len(texts), len(texts))
	var errs []error
	for i, text := range texts {
		errs = append(errs, f.parse(list.Index(i), text))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	f.value.Set(list)
	return nil
}

func (f field) parse(v reflect.Value, text string) error {
	parsed := reflect.New(v.Type()).Elem()
	if err := f.parseInto(parsed, text); err != nil {
		shown := strconv.Quote(text)
		if f.secret {
			return fmt.Errorf("%s is not a %s", hidden, f.scalarName(v.Type()))
		}
		return fmt.Errorf("%s %w", shown, err)
	}
	v.Set(parsed)
	return nil
}

// parseInto returns errors that continue a sentence about the value.
func (f field) parseInto(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			return fmt.Errorf("is refused: %w", err)
		}
		return nil
	}
	if v.Type() == duration {
		d, err := time.ParseDuration(text)
		if err != nil {
			return errors.New("is not a duration such as 10s, 5m or 1h30m")
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		return parseBool(v, text)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return errors.New("is not a number")
		}
		v.SetFloat(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return f.parseInteger(text, func(n int64) bool {
			if n < 0 || v.OverflowUint(uint64(n)) {
				return false
			}
			v.SetUint(uint64(n))
			return true
		})
	default:
		return f.parseInteger(text, func(n int64) bool {
			if v.OverflowInt(n) {
				return false
			}
			v.SetInt(n)
			return true
		})
	}
	return nil
}

func parseBool(v reflect.Value, text string) error {
	switch strings.ToLower(text) {
	case "true":
		v.SetBool(true)
	case "false":
		v.SetBool(false)
	default:
		return errors.New("is neither true nor false")
	}
	return nil
}

func (f field) parseInteger(text string, store func(int64) bool) error {
	var n int64
	var err error
	if f.bytes {
		n, err = parseSize(text)
	} else if n, err = strconv.ParseInt(text, 10, 64); err != nil && !errors.Is(err, strconv.ErrRange) {
		return errors.New("is not a whole number")
	}
	switch {
	case err != nil && f.bytes:
		return err
	case err != nil || !store(n):
		return errors.New("is out of range")
	}
	return nil
}

// sizeUnits are in the order of printing: the largest that divides a size.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"KB", 1e3},
	{"B", 1},
	{"", 1},
}

var errNotSize = errors.New("is not a size such as 64MiB, 900KiB or 1000000")

func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "BKMGTibkmgtI ")
	unit := strings.TrimSpace(text[len(digits):])
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
		return 0, errNotSize
	}
	for _, u := range sizeUnits {
		if !strings.EqualFold(u.name, unit) {
			continue
		}
		if whole, err := strconv.ParseInt(digits, 10, 64); err == nil && whole <= math.MaxInt64/u.bytes && whole >= math.MinInt64/u.bytes {
			return whole * u.bytes, nil
		}
		bytes := n * float64(u.bytes)
		switch {
		case math.Abs(bytes) >= math.MaxInt64:
			return 0, errors.New("is out of range")
		case bytes != math.Trunc(bytes):
			return 0, errors.New("is not a whole number of bytes")
		}
		return int64(bytes), nil
	}
	return 0, errNotSize
}

func formatSize(n int64) string {
	for _, u := range sizeUnits[:4] {
		if n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// formatDuration drops what time.Duration.String adds: 720h0m0s is 720h.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// texts is the inverse of set.
func (f field) texts() []string {
	if !f.isList() {
		return []string{f.text(f.value)}
	}
	texts := make([]string, f.value.Len())
	for i := range texts {
		texts[i] = f.text(f.value.Index(i))
	}
	return texts
}

func (f field) text(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		text, err := m.MarshalText()
		if err != nil {
			return fmt.Sprint(v.Interface())
		}
		return string(text)
	}
	switch {
	case v.Type() == duration:
		return formatDuration(time.Duration(v.Int()))
	case f.bytes && v.CanInt():
		return formatSize(v.Int())
	case f.bytes && v.CanUint() && v.Uint() <= math.MaxInt64:
		return formatSize(int64(v.Uint()))
	default:
		return fmt.Sprint(v.Interface())
	}
}
