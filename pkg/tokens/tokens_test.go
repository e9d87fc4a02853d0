package tokens

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// write replaces a file at once, as Kubernetes does.
func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func TestMatch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "groups")
	write(t, file, "# of the shop\nshop:one\n\n  bank:two  \nbank:one\r\ng-abc:a:b\n")
	s, err := Open(nil,
		List{Key: "k", Values: []string{"all", "x"}, Label: "first"},
		List{Key: "g", File: file, Grouped: true, Label: "second"},
		List{Key: "unset"},
	)
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]struct {
		known      bool
		shop, bank bool
		label      string
	}{
		"all":                    {true, true, true, "first"},
		"x":                      {true, true, true, "first"},
		"one":                    {true, true, true, "second"},
		"two":                    {true, false, true, "second"},
		"a:b":                    {true, false, false, "second"},
		"shop:one":               {},
		"":                       {},
		"al":                     {},
		strings.Repeat("x", 9e3): {},
	} {
		m := s.Match(token)
		if m.Known() != want.known || m.For("g-1", "shop") != want.shop || m.For("bank") != want.bank || m.Label != want.label {
			t.Errorf("%.20q: %+v, want %+v", token, m, want)
		}
	}
	if !s.Match("a:b").For("shop", "g-abc") {
		t.Error("a group's id is not one of its names")
	}
	var none *Set
	if none.Match("all").Known() {
		t.Error("a nil Set knows a token")
	}
}

func TestNoListIsNoSet(t *testing.T) {
	if s, err := Open(nil, List{Key: "a"}, List{Key: "b", Grouped: true}); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
}

// No error shows a token, whatever is wrong with it.
func TestMistakesShowAtTheStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	for name, tc := range map[string]struct {
		list List
		file string
		want string
	}{
		"an empty token":        {List{Values: []string{"a", ""}}, "", "key[1]: it is empty"},
		"a token without group": {List{Values: []string{"hunter2"}, Grouped: true}, "", "key[0]: it is not GROUP:TOKEN"},
		"a group without token": {List{Grouped: true}, "shop:hunter2\nshop:\n", "key_file: line 2 of " + file + " is not GROUP:TOKEN"},
		"a space":               {List{}, "hunter2 hunter2", "line 1 of " + file + " has a character"},
		"an umlaut":             {List{Values: []string{"h\u00fcnter2"}}, "", "key[0]: it has a character"},
		"a long token":          {List{Values: []string{strings.Repeat("hunter2", 1000)}}, "", "longer than 4096"},
		"a large file":          {List{}, strings.Repeat("hunter2\n", 200_000), "larger than"},
		"no file":               {List{File: "/no/such/file"}, "", "key_file: open /no/such/file"},
	} {
		l := tc.list
		l.Key = "key"
		if tc.file != "" {
			write(t, file, tc.file)
			l.File = file
		}
		_, err := Open(nil, l)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "nter2") {
			t.Errorf("%s: %.200v, want %q", name, err, tc.want)
		}
		if err := l.Validate(); (err == nil) != (len(l.Values) == 0) {
			t.Errorf("%s: Validate = %.200v", name, err)
		}
	}
}

// A removed token is refused within seconds; a file that cannot be used changes nothing.
func TestFilesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		write(t, file, "one\ntwo\n")
		var log bytes.Buffer
		s, err := Open(slog.New(slog.NewTextHandler(&log, nil)), List{Key: "key", File: file})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		changes := 0
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx, func() { changes++ }) }()
		expect := func(when string, one, two bool, n int) {
			t.Helper()
			time.Sleep(lookAgain + time.Second) //nolint:forbidigo // in a bubble of synctest it costs no time
			synctest.Wait()
			if got, got2 := s.Match("one").Known(), s.Match("two").Known(); got != one || got2 != two || changes != n {
				t.Errorf("%s: %v, %v after %d changes; want %v, %v after %d", when, got, got2, changes, one, two, n)
			}
		}
		expect("at first", true, true, 0)
		write(t, file, "two\n")
		expect("after one was removed", false, true, 1)
		write(t, file, "hunter2 hunter2\none")
		expect("after a line that is no token", false, true, 1)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		expect("without the file", false, true, 1)
		write(t, file, "one")
		expect("when it is back", true, false, 2)
		write(t, file, "")
		expect("when it is empty", false, false, 3)
		if n := strings.Count(log.String(), "cannot be used"); n != 2 || strings.Contains(log.String(), "hunter2") {
			t.Errorf("logged %d warnings:\n%s", n, log.String())
		}
		stop()
		<-done
	})
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer a": "a", "bearer a.b-c": "a.b-c", "Bearer  a ": "a", "Basic a": "", "Bearer": "", "a": "", "": "", "Bearera": "",
	} {
		if got := Bearer(header); got != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}

func TestFileToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "token")
		write(t, file, "one\n")
		f, err := OpenFile("server.token_file", "", file)
		if err != nil {
			t.Fatal(err)
		}
		expect := func(want string) {
			t.Helper()
			if got := f.Token(); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		expect("one")
		write(t, file, "two")
		time.Sleep(lookAgain) //nolint:forbidigo // in a bubble of synctest it costs no time
		expect("two")
		write(t, file, "")
		time.Sleep(lookAgain) //nolint:forbidigo // as above
		expect("two")
		for _, text := range []string{"", "hunter2 hunter2"} {
			write(t, file, text)
			if _, err := OpenFile("server.token_file", "", file); err == nil || !strings.Contains(err.Error(), "server.token_file") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a file with %q: %v", text, err)
			}
		}
		if fixed, err := OpenFile("k", "fixed", ""); err != nil || fixed.Token() != "fixed" {
			t.Errorf("%v, %v", fixed, err)
		}
		if (*FileToken)(nil).Token() != "" {
			t.Error("nil has a token")
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	values := make([]string, 1000)
	for i := range values {
		values[i] = strings.Repeat("x", 30) + string(rune('0'+i%10)) + string(rune('0'+i/10%10)) + string(rune('0'+i/100))
	}
	s, err := Open(nil, List{Key: "k", Values: values})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !s.Match(values[500]).Known() {
			b.Fatal("unknown")
		}
	}
}
