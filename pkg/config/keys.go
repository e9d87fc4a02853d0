package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Key describes one configuration value.
type Key struct {
	Name    string // with its sections: kafka.brokers
	Type    string // for operators: text, number, size, list of text
	Default string // as written in the file, without quotes; *** if secret and set
	Doc     string
	Env     string // environment variable: METAFLOW_KAFKA_BROKERS
	Secret  bool
}

// Keys returns every key of dst, a pointer to a struct that holds the defaults,
// in the struct's order. prefix is the prefix of environment variables.
func Keys(dst any, prefix string) []Key {
	var keys []Key
	for _, f := range fieldsOf(dst) {
		k := Key{Name: f.key, Type: f.typeName(), Doc: f.doc, Env: envName(prefix, f.key), Secret: f.secret}
		switch {
		case !f.secret:
			k.Default = strings.Join(f.texts(), ",")
		case !f.value.IsZero():
			k.Default = hidden
		}
		keys = append(keys, k)
	}
	return keys
}

func envName(prefix, key string) string {
	return prefix + "_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// hidden replaces the value of a secret.
const hidden = "***"

// field is one value inside a configuration struct.
type field struct {
	key    string
	doc    string
	secret bool
	bytes  bool // an integer that counts bytes
	value  reflect.Value
}

// section is a struct that contains fields.
type section struct {
	key string
	doc string
}

// fieldsOf returns the fields of dst in order. It panics unless dst is a
// pointer to a struct that this package supports.
func fieldsOf(dst any) []field {
	var fields []field
	walk(dst, func(f field) { fields = append(fields, f) }, func(section) {})
	return fields
}

// walk visits the fields of dst, each section before its contents.
func walk(dst any, onField func(field), onSection func(section)) {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("config: %T is not a pointer to a struct", dst))
	}
	walkStruct(v.Elem(), "", onField, onSection)
}

func walkStruct(v reflect.Value, parent string, onField func(field), onSection func(section)) {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		name := sf.Tag.Get("mapstructure")
		switch {
		case name == "-":
			continue
		case name == "" || strings.ContainsAny(name, ",.") || name != strings.ToLower(name) || !sf.IsExported():
			panic(fmt.Sprintf("config: field %s.%s needs a mapstructure tag that is a plain lower-case name", v.Type(), sf.Name))
		}
		key := joinKey(parent, name)
		if isSection(sf.Type) {
			onSection(section{key: key, doc: sf.Tag.Get("doc")})
			walkStruct(v.Field(i), key, onField, onSection)
			continue
		}
		f := field{
			key: key, doc: sf.Tag.Get("doc"), value: v.Field(i),
			secret: sf.Tag.Get("secret") == "true", bytes: sf.Tag.Get("unit") == "bytes",
		}
		f.typeName() // panics if unsupported
		if afterService.MatchString(envName("", name)) {
			panic(fmt.Sprintf("config: Kubernetes would set the key %s for a service named like its section", key))
		}
		onField(f)
	}
}

func joinKey(parent, name string) string {
	if parent == "" {
		return name
	}
	return parent + "." + name
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	duration        = reflect.TypeFor[time.Duration]()
)

func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textUnmarshaler)
}
