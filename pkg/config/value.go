package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// Values from all sources are texts until they are parsed here; lists are
// several texts.

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

// set parses texts into the field. After an error the field keeps its value.
// The error contains the value, not the key.
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
		d, err := values.Duration(text)
		v.SetInt(int64(d))
		return err
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
		return nil
	case reflect.Bool:
		b, err := values.Bool(text)
		v.SetBool(b)
		return err
	case reflect.Float32, reflect.Float64:
		n, err := values.Number(text)
		if err == nil && v.OverflowFloat(n) {
			err = values.ErrRange
		}
		v.SetFloat(n)
		return err
	default:
		return f.parseInteger(v, text)
	}
}

func (f field) parseInteger(v reflect.Value, text string) error {
	parse := values.Whole
	if f.bytes {
		parse = values.Size
	}
	n, err := parse(text)
	switch {
	case err != nil:
		return err
	case v.CanUint():
		if n < 0 || v.OverflowUint(uint64(n)) {
			return values.ErrRange
		}
		v.SetUint(uint64(n))
	default:
		if v.OverflowInt(n) {
			return values.ErrRange
		}
		v.SetInt(n)
	}
	return nil
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
		return values.FormatDuration(time.Duration(v.Int()))
	case f.bytes && v.CanInt():
		return values.FormatSize(v.Int())
	case f.bytes && v.CanUint() && v.Uint() <= math.MaxInt64:
		return values.FormatSize(int64(v.Uint()))
	default:
		return fmt.Sprint(v.Interface())
	}
}
