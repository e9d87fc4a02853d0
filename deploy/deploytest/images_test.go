package deploytest

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	compose "github.com/compose-spec/compose-go/v2/types"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// image is what the Dockerfile builds for one target.
type image struct {
	files      []string // its programs, by path
	entrypoint []string
	command    []string
}

// images parses the Dockerfile, as far as it concerns programs and entry
// points.
func images(t *testing.T) map[string]*image {
	t.Helper()
	found := map[string]*image{}
	var stage *image
	text := strings.ReplaceAll(read(t, "../docker/Dockerfile"), "\\\n", " ")
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "FROM":
			stage = &image{}
			found[words[len(words)-1]] = stage
		case "COPY":
			if words[1] == "--from=build" {
				for _, file := range words[2 : len(words)-1] {
					stage.files = append(stage.files, path.Join(words[len(words)-1], path.Base(file)))
				}
			}
		case "ENTRYPOINT":
			stage.entrypoint = list(t, line)
		case "CMD":
			stage.command = list(t, line)
		}
	}
	return found
}

func list(t *testing.T, line string) (words []string) {
	t.Helper()
	_, text, _ := strings.Cut(line, " ")
	if err := json.Unmarshal([]byte(text), &words); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return words
}

// The Dockerfile builds existing programs, and its entry points are among them.
func TestDockerfile(t *testing.T) {
	text := read(t, "../docker/Dockerfile")
	for _, cmd := range regexp.MustCompile(`\./cmd/\S+`).FindAllString(text, -1) {
		if _, err := os.Stat(filepath.Join(repository, cmd, "main.go")); err != nil {
			t.Errorf("builds %s: %v", cmd, err)
		}
	}
	for name, i := range images(t) {
		if name == "build" {
			continue
		}
		if len(i.entrypoint) != 1 || !slices.Contains(i.files, i.entrypoint[0]) {
			t.Errorf("%s: the entry point %v is not among %v", name, i.entrypoint, i.files)
			continue
		}
		knowsCommand(t, path.Base(i.entrypoint[0]), i.command)
	}
	for _, needed := range []string{"--platform=$BUILDPLATFORM", "GOARCH=$TARGETARCH", "distroless"} {
		if !strings.Contains(text, needed) {
			t.Errorf("the Dockerfile lacks %s", needed)
		}
	}
}

// The programs that the chart's containers run are in their images and know the
// commands and flags.
func TestChartRunsProgramsOfImages(t *testing.T) {
	known := images(t)
	for name := range matrix {
		for _, w := range (release{}).fromMatrix(t, name).objects(t).workloads {
			for _, c := range slices.Concat(w.template.Spec.InitContainers, w.template.Spec.Containers) {
				repo, ours := strings.CutPrefix(c.Image, "metaflowys/metaflow-")
				if !ours {
					continue
				}
				i := known[repo[:strings.IndexAny(repo, ":@")]]
				if i == nil {
					t.Errorf("%s: the Dockerfile builds no image %s", w, c.Image)
					continue
				}
				command := i.entrypoint
				if len(c.Command) > 0 {
					command = c.Command
				}
				if !slices.Contains(i.files, command[0]) {
					t.Errorf("%s: %s is not in %s", w, command[0], c.Image)
				}
				knowsCommand(t, path.Base(command[0]), c.Args)
			}
		}
	}
}

func loadCompose(t *testing.T) *compose.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{"../compose/compose.yaml"}, cli.WithResolvedPaths(true))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// The compose file is valid, its files exist, and its servers' keys are known.
func TestCompose(t *testing.T) {
	project := loadCompose(t)
	known := images(t)
	for name, s := range project.Services {
		for _, v := range s.Volumes {
			if v.Type != compose.VolumeTypeBind {
				continue
			}
			if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s mounts %s: %v", name, v.Source, err)
			}
		}
		if s.Build == nil {
			continue
		}
		i := known[s.Build.Target]
		if i == nil {
			t.Errorf("%s is built from %s, which the Dockerfile does not have", name, s.Build.Target)
			continue
		}
		programName := path.Base(i.entrypoint[0])
		knowsCommand(t, programName, s.Command)
		keys := variables(t, programName)
		for variable := range s.Environment {
			if strings.HasPrefix(variable, "METAFLOW_") && !strings.Contains(keys, variable+"\n") {
				t.Errorf("%s: %s is not a key of %s", name, variable, programName)
			}
		}
	}
	if err := checkConfig(t, "metaflow-server", read(t, "../compose/metaflow-server.yaml")); err != nil {
		t.Error(err)
	}
}

// reachable reports whether a service has a name or alias.
func reachable(services compose.Services, host string) bool {
	for name, s := range services {
		if name == host {
			return true
		}
		for _, n := range s.Networks {
			if n != nil && slices.Contains(n.Aliases, host) {
				return true
			}
		}
	}
	return false
}

// Grafana's data sources are services of the compose file, and what Prometheus scrapes
// there listens where it is scraped.
func TestComposeDataSources(t *testing.T) {
	services := loadCompose(t).Services
	files, err := filepath.Glob("../grafana/datasources/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("data sources %v, %v", files, err)
	}
	for _, file := range files {
		var sources struct {
			Datasources []struct {
				Name, URL string
				JSONData  struct{ Host string } `json:"jsonData"`
			}
		}
		if err := yaml.Unmarshal([]byte(read(t, file)), &sources); err != nil {
			t.Fatal(err)
		}
		for _, s := range sources.Datasources {
			host := s.JSONData.Host
			if s.URL != "" {
				u, err := url.Parse(s.URL)
				if err != nil {
					t.Fatal(err)
				}
				host = u.Hostname()
			}
			if !reachable(services, host) {
				t.Errorf("data source %s is at %q, which the compose file does not start", s.Name, host)
			}
		}
	}
	var scraped struct {
		Jobs []struct {
			Static []struct{ Targets []string } `json:"static_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "../compose/prometheus.yml")), &scraped); err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, job := range scraped.Jobs {
		for _, s := range job.Static {
			targets = append(targets, s.Targets...)
		}
	}
	if want := []string{"server:20417", "host.docker.internal:38087"}; !slices.Equal(targets, want) {
		t.Errorf("Prometheus scrapes %v, want %v", targets, want)
	}
	if listen := services["agent"].Environment["METAFLOW_HTTP_LISTEN"]; listen == nil || *listen != "0.0.0.0:38087" {
		t.Errorf("the agent's metrics are at %v", listen)
	}
}

// The chart, the compose file and the packages have one version, and start the
// same Kafka and ClickHouse.
func TestVersionsAgree(t *testing.T) {
	var chart struct {
		AppVersion string
		Version    string
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(chartDir, "Chart.yaml"))), &chart); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, w := range (release{}).objects(t).workloads {
		for _, c := range w.template.Spec.Containers {
			want[c.Name] = c.Image
		}
	}
	for name, s := range loadCompose(t).Services {
		if chartImage, ok := want[name]; ok && s.Image != chartImage {
			t.Errorf("compose runs %s, the chart %s", s.Image, chartImage)
		}
	}
	// The tests run on the same Kafka.
	_, kafkaVersion, _ := strings.Cut(want["kafka"], ":")
	if !strings.Contains(read(t, "../kafka/pom.xml"), "<version>"+kafkaVersion+"</version>") {
		t.Errorf("the chart runs Kafka %s, the tests another version", kafkaVersion)
	}
	kafka := release{}.objects(t).template("metaflow-kafka").Spec.Containers[0].Env
	for _, e := range kafka {
		if e.Name == "KAFKA_ADVERTISED_LISTENERS" || e.Name == "KAFKA_HEAP_OPTS" {
			continue
		}
		if got := loadCompose(t).Services["kafka"].Environment[e.Name]; got == nil || *got != e.Value {
			t.Errorf("compose sets %s to %v, the chart to %s", e.Name, got, e.Value)
		}
	}
}

// ClickHouse's files are valid XML.
func TestClickHouseFiles(t *testing.T) {
	texts := map[string]string{"compose": read(t, "../compose/clickhouse-users.xml")}
	each(release{}.objects(t), func(m *core.ConfigMap) {
		for file, text := range m.Data {
			if strings.HasSuffix(file, ".xml") {
				texts[file] = text
			}
		}
	})
	if len(texts) != 3 {
		t.Errorf("%d files, want 3", len(texts))
	}
	for name, text := range texts {
		decoder := xml.NewDecoder(strings.NewReader(text))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}
