package agentconfig

import (
	"flag"
	"reflect"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/testkit/fielddoc"
)

// The comments of the fields equal the texts of the catalogue; -update writes
// them.
func TestFieldCommentsMatchCatalogue(t *testing.T) {
	update := flag.Lookup("update").Value.String() == "true"
	texts := map[string]string{}
	var c Config
	for _, s := range settings {
		texts[fieldAt(t, reflect.ValueOf(&c).Elem(), reflect.ValueOf(s.at(&c)).Pointer())] = s.Doc
	}
	fields := fielddoc.Check(t, "config.go", func(structName, fieldName string, _ reflect.StructTag) string {
		return texts[structName+"."+fieldName]
	}, update)
	if fields != len(settings) {
		t.Errorf("%d of %d keys are in the comment of a field", fields, len(settings))
	}
}

// fieldAt returns the name of the struct field at an address, in v or a nested
// struct.
func fieldAt(t *testing.T, v reflect.Value, address uintptr) string {
	t.Helper()
	for i := range v.NumField() {
		f := v.Field(i)
		begin := f.Addr().Pointer()
		if address < begin || address >= begin+f.Type().Size() {
			continue
		}
		if f.Kind() == reflect.Struct {
			return fieldAt(t, f, address)
		}
		return v.Type().Name() + "." + v.Type().Field(i).Name
	}
	t.Fatal("found a setting without a field in Config")
	return ""
}
