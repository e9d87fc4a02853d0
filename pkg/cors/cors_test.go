package cors_test

import (
	"strings"
	"testing"

	"github.com/metaflowys/metaflow-server/pkg/cors"
)

func TestOriginsMatch(t *testing.T) {
	tests := map[string]struct {
		pattern string
		yes, no []string
	}{
		"an origin": {
			"https://app.example.com",
			[]string{"https://app.example.com", "HTTPS://App.Example.com"},
			[]string{"", "null", "*", "http://app.example.com", "https://app.example.com:8443", "https://app.example.com.evil.test", "https://xapp.example.com", "https://a.app.example.com"},
		},
		"an origin with a port": {
			"http://localhost:3000", []string{"http://localhost:3000"}, []string{"http://localhost", "http://localhost:30000", "https://localhost:3000"},
		},
		"an address": {"http://[::1]:3000", []string{"http://[::1]:3000"}, []string{"http://[::1]"}},
		"another scheme": {
			"capacitor://localhost", []string{"capacitor://localhost"}, []string{"http://localhost"},
		},
		"upper case": {"HTTPS://App.Example.com", []string{"https://app.example.com"}, nil},
		"every subdomain": {
			"https://*.example.com",
			[]string{"https://app.example.com", "https://a.b.example.com", "https://A.EXAMPLE.com"},
			[]string{
				"https://example.com", "https://.example.com", "http://app.example.com", "https://app.example.com:8443", "https://evilexample.com",
				"https://evil.test/.example.com", "https://evil.test:1.example.com", "https://user@a.example.com", "https://evil.test?.example.com",
				"https://a..example.com", "https://*.example.com", "https://" + strings.Repeat("a.", 400) + "example.com",
			},
		},
		"every subdomain on a port": {
			"http://*.example.com:8080", []string{"http://a.example.com:8080"}, []string{"http://a.example.com", "http://a.example.com:80800"},
		},
		"every origin": {"*", []string{"https://app.example.com", "null"}, []string{""}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := cors.ParseOrigin(tc.pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, origin := range tc.yes {
				if !o.Matches(origin) {
					t.Errorf("%q is not matched", origin)
				}
			}
			for _, origin := range tc.no {
				if o.Matches(origin) {
					t.Errorf("%q is matched", origin)
				}
			}
			again, err := cors.ParseOrigin(o.String())
			if err != nil || again != o {
				t.Errorf("%q reads back as %v, %v", o, again, err)
			}
		})
	}
	if (cors.Origin{}).Matches("") || (cors.Origin{}).Matches("https://a.test") {
		t.Error("the zero value matches")
	}
}

func TestWrongOriginsAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "is not an origin such as https://app.example.com",
		"app.example.com":                     "is not an origin",
		"null":                                "is not an origin",
		"**":                                  "is not an origin",
		"://a":                                "is not an origin",
		"https://":                            `has the host ""`,
		"https://app.example.com/":            "has a path",
		"https://app.example.com/v1":          "has a path",
		"https://app.example.com?x":           "has a path",
		"https://me@app.example.com":          "has a user",
		"https://*":                           "has a *",
		"https://app.*.com":                   "has a *",
		"https://a*.example.com":              "has a *",
		"https://*.*.example.com":             "has a *",
		"https://*.":                          `has the host ""`,
		"*://app.example.com":                 "is not an origin",
		"https://app.example.com:443":         "names the default port 443, which browsers leave out",
		"http://app.example.com:80":           "names the default port 80",
		"https://app.example.com:":            `has the port ""`,
		"https://app.example.com:*":           `has the port "*"`,
		"https://app.example.com:http":        `has the port "http"`,
		"https://b\u00fccher.example":         "is neither a name nor an address",
		"https://a b":                         "is neither a name nor an address",
		"https://a,https://b":                 "has a path",
		"https://[::1":                        `has the host "[:"`,
		"https://" + strings.Repeat("a", 300): "is longer than 300 bytes",
	} {
		if o, err := cors.ParseOrigin(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseOrigin(%q) = %q, %v; want %q", text, o, err, want)
		}
	}
}

func TestHeadersAreNames(t *testing.T) {
	if h, err := cors.ParseHeader("X-Api-Key"); err != nil || h != "x-api-key" {
		t.Errorf("%q, %v", h, err)
	}
	for _, text := range []string{"", "*", "a b", "a,b", "a:b", "a\r\nb", "\u00fc", strings.Repeat("a", 301)} {
		if h, err := cors.ParseHeader(text); err == nil || !strings.Contains(err.Error(), "is not the name of a header such as X-Api-Key") {
			t.Errorf("ParseHeader(%q) = %q, %v", text, h, err)
		}
	}
}

// A named origin is distinguished from one that only * allows.
func TestPolicyAllows(t *testing.T) {
	named, _ := cors.ParseOrigin("https://app.example.com")
	any, _ := cors.ParseOrigin("*")
	p := cors.Policy{AllowedOrigins: []cors.Origin{any, named}}
	for origin, want := range map[string][2]bool{
		"https://app.example.com": {true, true}, "https://other.test": {true, false}, "": {false, false},
	} {
		if allowed, isNamed := p.Allow(origin); allowed != want[0] || isNamed != want[1] {
			t.Errorf("%q: allowed %t, named %t; want %v", origin, allowed, isNamed, want)
		}
	}
	if (cors.Policy{}).Enabled() || !p.Enabled() || p.Equal(cors.Policy{}) || !p.Equal(p) {
		t.Error("a policy with origins is enabled, and equal only to its like")
	}
}

func TestPolicyReportsEveryProblem(t *testing.T) {
	if err := cors.DefaultPolicy().Validate("cors"); err != nil || cors.DefaultPolicy().Enabled() {
		t.Errorf("the default policy: %v, enabled %t", err, cors.DefaultPolicy().Enabled())
	}
	err := cors.Policy{AllowedOrigins: make([]cors.Origin, 257), AllowedHeaders: make([]cors.Header, 257), MaxAge: -1}.Validate("cors")
	if got := strings.Count(err.Error(), "\n") + 1; got != 3 {
		t.Errorf("%d problems, want 3: %v", got, err)
	}
}

// FuzzOrigin checks that every accepted origin parses back to itself, and that a pattern
// matches only origins with its suffix.
func FuzzOrigin(f *testing.F) {
	f.Add("https://*.example.com", "https://a.example.com")
	f.Add("http://[::1]:3000", "http://[::1]:3000")
	f.Fuzz(func(t *testing.T, text, origin string) {
		o, err := cors.ParseOrigin(text)
		if err != nil {
			return
		}
		if again, err := cors.ParseOrigin(o.String()); err != nil || again != o {
			t.Fatalf("%q reads back as %v, %v", text, again, err)
		}
		if _, domain, pattern := strings.Cut(o.String(), "*."); pattern && o.Matches(origin) && !strings.HasSuffix(strings.ToLower(origin), "."+domain) {
			t.Fatalf("%q matches %q", text, origin)
		}
	})
}
