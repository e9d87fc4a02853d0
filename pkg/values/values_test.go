package values_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// accepts checks that parse gives want for each text.
func accepts[T comparable](t *testing.T, parse func(string) (T, error), want map[string]T) {
	t.Helper()
	for text, w := range want {
		if got, err := parse(text); err != nil || got != w {
			t.Errorf("%q is %v, %v; want %v", text, got, err, w)
		}
	}
}

// refuses checks that parse gives an error with this text for each of the texts.
func refuses[T any](t *testing.T, parse func(string) (T, error), want string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if got, err := parse(text); err == nil || err.Error() != want {
			t.Errorf("%q is %v, %v; want the error %q", text, got, err, want)
		}
	}
}

func TestBool(t *testing.T) {
	accepts(t, values.Bool, map[string]bool{"true": true, "True": true, "TRUE": true, "false": false, "False": false, "FALSE": false, " true\n": true})
	refuses(t, values.Bool, "is neither true nor false", "", "1", "0", "yes", "on", "t", "tRuE", "true false")
}

func TestWhole(t *testing.T) {
	accepts(t, values.Whole, map[string]int64{
		"0": 0, "8080": 8080, "-1": -1, " 7 ": 7, "9223372036854775807": math.MaxInt64, "-9223372036854775808": math.MinInt64,
	})
	refuses(t, values.Whole, "is not a whole number", "", "-", "twelve", "½", "inf")
	refuses(t, values.Whole, "is not a number in plain decimal digits", "010", "-01", "00", "+1", "1_000", "0x10", "0b1", "0o7", "1e3", "1.0", "1 2", "--1", "٣1")
	refuses(t, values.Whole, "is out of range", "9223372036854775808", "-9223372036854775809", strings.Repeat("9", 1000))
}

func TestNumber(t *testing.T) {
	accepts(t, values.Number, map[string]float64{"0": 0, "0.5": .5, ".5": .5, "5.": 5, "-2": -2, "1e3": 1000, "1E-3": .001, "1e+06": 1e6, "0e0": 0})
	refuses(t, values.Number, "is not a number", "", "half", "inf", "-Inf", "nan", ".nan", "0x1p20", "0x10", "1_0", "+1", "1,5", "e5", "1e", "1.2.3", "-")
	refuses(t, values.Number, "is not a number in plain decimal digits", "007", "-01.5")
	refuses(t, values.Number, "is out of range", "1e999")
}

func TestSize(t *testing.T) {
	accepts(t, values.Size, map[string]int64{
		"0": 0, "1000000": 1e6, "64MiB": 64 << 20, "64mib": 64 << 20, "64 MiB": 64 << 20, " 64MiB ": 64 << 20, "900KiB": 900 << 10, "1.5GiB": 3 << 29,
		".5KiB": 512, "1.KiB": 1024, "0.1MB": 100_000, "2TB": 2e12, "3GB": 3e9, "4KB": 4000, "7B": 7, "7 b": 7, "-5KiB": -5 << 10,
		"9223372036854775807": math.MaxInt64, "-9223372036854775808": math.MinInt64, "8388607TiB": 8388607 << 40,
		"9007199254740993.0B": 9007199254740993,
	})
	refuses(t, values.Size, "is not a size such as 64MiB, 900KiB or 1000000",
		"", "MiB", ".", "-", "huge", "64 megs", "64M", "64K", "64 K iB", "MiB 64", "0x1p20", "0x10", "1e6", "1e+06", "1_000", "+64MiB", "--1", "010", "010MiB", "NaN", "Inf", "infinity", "1/2GiB", "1.5", "8080.0", "1.", "1.2.3KiB", "1.-2", "٣MiB", "1,5GiB")
	refuses(t, values.Size, "is not a whole number of bytes", "0.3KiB", "1.5B", "0.0000000001TiB")
	refuses(t, values.Size, "is out of range", "9223372036854775808", "8388608TiB", "99999999999999999999TiB", strings.Repeat("9", 1_000_000), "0."+strings.Repeat("0", 100)+"B")
	if _, err := values.Size("8388608TiB"); !errors.Is(err, values.ErrRange) {
		t.Errorf("%v is not ErrRange", err)
	}
}

func TestDuration(t *testing.T) {
	accepts(t, values.Duration, map[string]time.Duration{
		"10s": 10 * time.Second, "30d": 720 * time.Hour, "2w": 336 * time.Hour, "1w2d3h": 219 * time.Hour, "1.5d": 36 * time.Hour, "1d12h30m": 36*time.Hour + 30*time.Minute, "-1d": -24 * time.Hour, "-1d1h": -25 * time.Hour, "12h1d": 36 * time.Hour, "106751d": 106751 * 24 * time.Hour, "1h30m": 90 * time.Minute, "1h05m": 65 * time.Minute, "1.5h": 90 * time.Minute, ".5s": time.Second / 2, "0": 0, "-1s": -time.Second, " 10s ": 10 * time.Second, "1us": time.Microsecond, "1µs": time.Microsecond,
	})
	refuses(t, values.Duration, "is not a duration such as 10s, 5m, 1h30m or 30d", "", "10", "10 s", "+10s", "soon", "s", "0x1s", "1e3s", "9999999h", "1_0s", "1dd", "d", "w", "1 d", "+1d", "1d-1h", "1d+1h", "--1d", "106752d", "15250w2d", "106751d24h", "1d1", "1day", "1e1d", "30D")
}

func TestPort(t *testing.T) {
	accepts(t, values.Port, map[string]uint16{"0": 0, "1": 1, "65535": 65535})
	refuses(t, values.Port, "is not a port, 0 to 65535", "", "65536", "-1", "http", "080", "0x50", "8e1")
}

func TestIP(t *testing.T) {
	for _, text := range []string{"192.0.2.1", "2001:db8::1", "fe80::1%eth0", "::"} {
		if _, err := values.IP(text); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	refuses(t, values.IP, "is not an IP address such as 192.0.2.1 or 2001:db8::1", "", "localhost", " ::1", "1.2.3", "01.2.3.4", "[::1]", "192.0.2.1:1", "192.0.2.0/24")
}

func TestAddresses(t *testing.T) {
	const dial, listen = 1, 2 // for which of the two an address is right
	tests := map[string]int{
		"kafka-1:9092": dial | listen, "kafka_1.svc.cluster.local.:9092": dial | listen, "192.0.2.1:65535": dial | listen, "[2001:db8::1]:1": dial | listen,
		"[fe80::1%eth0]:1": dial | listen, "bücher.example:1": dial | listen,
		":20035": listen, "0.0.0.0:0": listen, "[::]:0": listen, "a:0": listen,
		"": 0, "nowhere": 0, "a:": 0, ":": 0, "a:http": 0, "a:65536": 0, "a:-1": 0, "a:080": 0, "a:+80": 0, "a: 80": 0, "a :80": 0, " a:1": 0, "a:1 ": 0, "a b:80": 0, "2001:db8::1:80": 0, "::1": 0,
		"[::1]": 0, "[::1:80": 0, "::1]:80": 0, "[a]:80": 0, "[192.0.2.1]:80": 0, "[]:80": 0, "http://a:80": 0, "user@a:80": 0, "a/b:80": 0, "a,b:80": 0, "a:1,b:2": 0, "a\x00:80": 0,
	}
	for text, want := range tests {
		got := 0
		if err := values.CheckDial(text); err == nil {
			got |= dial
		} else if err.Error() != "is not host:port such as kafka-1:9092 or [2001:db8::1]:9092" {
			t.Errorf("%q: %v", text, err)
		}
		if err := values.CheckListen(text); err == nil {
			got |= listen
		} else if err.Error() != "is not host:port such as 0.0.0.0:8080, [::1]:8080 or :8080" {
			t.Errorf("%q: %v", text, err)
		}
		if got != want {
			t.Errorf("%q is right for %b, want %b (1 to dial, 10 to listen)", text, got, want)
		}
	}
}

func TestList(t *testing.T) {
	for text, want := range map[string][]string{"": {}, " , ,": {}, "a": {"a"}, "a:1, b:2,": {"a:1", "b:2"}, "a b,c": {"a b", "c"}} {
		if diff := cmp.Diff(want, values.List(text)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"kafka", "kafka.brokers", "kafka.partitions", "grpc", "grpc.listen", "http", "http.listen", "group"}
	tests := map[string]string{
		"kafak": "kafka", "kafka.brokrs": "kafka.brokers", "kafka.borkers": "kafka.brokers", "kafka.partition": "kafka.partitions",
		"listen": "grpc.listen", "brokers": "kafka.brokers", "brokrs": "kafka.brokers", "clickhouse.listen": "grpc.listen",
		"htp.listen": "http.listen", "grup": "group",
		"": "", "zzz": "", "kafka.zzz": "", strings.Repeat("kafka", 100): "",
	}
	for name, want := range tests {
		if got := values.Nearest(name, known); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestEdits(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"abc", "abc", 0}, {"abc", "axc", 1}, {"abc", "bac", 2}, {"kitten", "sitting", 3}, {strings.Repeat("a", 9), "a", 10}} {
		if got := values.Edits(tc.a, tc.b); got != tc.want {
			t.Errorf("%q, %q: %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}

// What the formatters write, the parsers read as the same.
func TestFormatsAreReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64().Draw(t, "n")
		if got, err := values.Size(values.FormatSize(n)); err != nil || got != n {
			t.Fatalf("size %s: %d, %v", values.FormatSize(n), got, err)
		}
		d := time.Duration(n)
		if got, err := values.Duration(values.FormatDuration(d)); err != nil || got != d {
			t.Fatalf("duration %s: %s, %v", values.FormatDuration(d), got, err)
		}
	})
	for d, want := range map[time.Duration]string{720 * time.Hour: "720h", time.Minute: "1m", 90 * time.Second: "1m30s", 0: "0s", time.Hour + time.Second: "1h0m1s"} {
		if got := values.FormatDuration(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 1 << 30: "1GiB", 1536: "1536", 3 << 10: "3KiB", 1e6: "1000000"} {
		if got := values.FormatSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// FuzzParsers holds every parser to its contract for any text: no panic, and
// errors that do not contain the text, which may be a secret.
func FuzzParsers(f *testing.F) {
	for _, text := range []string{"64MiB", "1h30m", "[::1]:80", "0x1p20", "-.5 TiB", "true", "1e9"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var errs []error
		note := func(err error) { errs = append(errs, err) }
		_, err := values.Bool(text)
		note(err)
		_, err = values.Whole(text)
		note(err)
		n, err := values.Number(text)
		note(err)
		if err == nil && (math.IsNaN(n) || math.IsInf(n, 0)) {
			t.Errorf("%q is the number %g", text, n)
		}
		_, err = values.Size(text)
		note(err)
		_, err = values.Duration(text)
		note(err)
		_, err = values.IP(text)
		note(err)
		note(values.CheckDial(text))
		note(values.CheckListen(text))
		values.Nearest(text, []string{"a.b", text, text + "c"})
		for _, err := range errs {
			if err != nil && len(text) > 8 && strings.Contains(err.Error(), text) {
				t.Errorf("%q is in the error %v", text, err)
			}
		}
	})
}
