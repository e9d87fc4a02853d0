package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/metaflowys/metaflow-server/integration/internal/otelcol"
)

// A Jaeger whose storage is a MetaFlow server stores what it receives by the server's OTLP
// port, and reads it by the role query. `make jaeger` builds it.
func TestJaegerStoresAndReads(t *testing.T) {
	s := startStandalone(t, t.TempDir())
	api, otlp := otelcol.RunJaeger(t, repository(t), s.at.QueryGRPC, s.at.GRPC)
	s.eventually(2*time.Minute, func() error {
		code, body, err := get("http://" + api + "/api/services")
		if err != nil || code != http.StatusOK {
			return fmt.Errorf("%d %s: %w", code, body, err)
		}
		return nil
	})
	trace := sendWithSDK(t, otlp)
	s.eventually(time.Minute, exactly(open(t, s.at.ClickHouseNative), 2))
	s.eventually(time.Minute, func() error {
		code, body, err := get("http://" + api + "/api/traces/" + trace)
		if err != nil || code != http.StatusOK || !strings.Contains(body, "GET /cart/{user}") {
			return fmt.Errorf("%d %s: %w", code, body, err)
		}
		return nil
	})
}

// Jaeger's own certification suite of storages passes over a server: all cases but those of
// adaptive sampling, for which MetaFlow has no storage. testdata/certification says how the
// suite writes and reads.
func TestJaegerCertification(t *testing.T) {
	suite := exec.Command(otelcol.JaegerCertification(t, repository(t)), "-test.v", "-test.timeout", "10m")
	suite.Dir = repository(t)
	suite.Env = append(os.Environ(), "SERVER_PROGRAM="+filepath.Join(binaries, "metaflow-server"))
	suite.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	output, err := suite.CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
	cases := map[string][]string{}
	for _, m := range regexp.MustCompile(`--- (PASS|SKIP|FAIL): TestMetaFlow/(\S+)`).FindAllStringSubmatch(string(output), -1) {
		cases[m[1]] = append(cases[m[1]], m[2])
	}
	t.Logf("passed: %s", strings.Join(cases["PASS"], ", "))
	if diff := cmp.Diff([]string{"GetThroughput", "GetLatestProbability"}, cases["SKIP"]); diff != "" {
		t.Errorf("skipped: -want +got:\n%s", diff)
	}
	for _, want := range []string{"GetServices", "GetOperations", "GetTrace", "GetTrace/NotFound_error", "GetLargeTrace", "GetTraceWithDuplicateSpans", "FindTraces", "FindTraces/Tags_in_different_spots", "GetDependencies"} {
		if !slices.Contains(cases["PASS"], want) {
			t.Errorf("%s did not pass", want)
		}
	}
}
