package fielddoc

import (
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRender(t *testing.T) {
	const source = `package p

// T is exported.
type T struct {
	// A was something else,
	// in two lines.
	A string ~doc:"a short text"~
	B int    ~doc:"a text that is so long that it does not fit into the eighty columns of a line; two sentences. Of them"~ // stays
	// C has no tag.
	C, D bool
}

type t struct {
	A string ~doc:"not exported"~
}
`
	const want = `package p

// T is exported.
type T struct {
	// A: a short text.
	A string ~doc:"a short text"~
	// B: a text that is so long that it does not fit into the eighty
	// columns of a line; two sentences. Of them.
	B int ~doc:"a text that is so long that it does not fit into the eighty columns of a line; two sentences. Of them"~ // stays
	// C has no tag.
	C, D bool
}

type t struct {
	A string ~doc:"not exported"~
}
`
	code := func(text string) string { return strings.ReplaceAll(text, "~", "`") }
	byTag := func(_, _ string, tag reflect.StructTag) string { return tag.Get("doc") }
	got, fields, err := render(code(source), byTag)
	if err != nil || fields != 2 {
		t.Errorf("%d fields, %v", fields, err)
	}
	if diff := cmp.Diff(code(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if again, _, err := render(got, byTag); err != nil || again != got {
		t.Errorf("rendered again, it is another text: %v\n%s", err, cmp.Diff(got, again))
	}
	if _, _, err := render("package", byTag); err == nil {
		t.Error("a broken file is no error")
	}
}
