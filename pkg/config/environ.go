package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/metaflowys/metaflow-server/pkg/values"
)

// UnknownVariables returns a problem for each variable of environ (in the form
// of os.Environ) that begins with prefix, is not empty, and is neither in known
// nor in others. A name in others that ends in _ matches every variable that
// begins with it. Variables that Kubernetes sets for a service are not
// reported. A problem names the nearest variable of known and shows no value:
// it may be a misspelt secret's.
func UnknownVariables(environ []string, prefix string, known, others []string) []Problem {
	names := make([]string, len(known)) // without the common prefix
	for i, name := range known {
		names[i] = strings.TrimPrefix(name, prefix)
	}
	links := serviceLinks(environ)
	var problems []Problem
	for _, variable := range environ {
		name, text, _ := strings.Cut(variable, "=")
		switch {
		case text == "" || slices.Contains(known, name) || !strings.HasPrefix(name, prefix):
		case isOther(name, others) || links.contain(name):
		default:
			problem := Problem{Key: name, Text: "the variable names no key"}
			if near := values.Nearest(strings.TrimPrefix(name, prefix), names); near != "" {
				problem.Text += ", did you mean " + prefix + near + "?"
			}
			problems = append(problems, problem)
		}
	}
	return problems
}

func isOther(name string, others []string) bool {
	for _, other := range others {
		if name == other || strings.HasSuffix(other, "_") && strings.HasPrefix(name, other) {
			return true
		}
	}
	return false
}

// links are the services for which Kubernetes sets variables in the containers
// of a pod. For the service metaflow-server it sets
// METAFLOW_SERVER_SERVICE_HOST to an address, together with
// METAFLOW_SERVER_SERVICE_PORT, METAFLOW_SERVER_PORT,
// METAFLOW_SERVER_PORT_20035_TCP and others. These names are not meant to
// configure a program.
type links []string

const serviceHost = "_SERVICE_HOST"

// serviceLinks finds the services: only a service has a host that is an
// address.
func serviceLinks(environ []string) links {
	var services links
	for _, variable := range environ {
		name, text, _ := strings.Cut(variable, "=")
		service, isHost := strings.CutSuffix(name, serviceHost)
		if _, err := netip.ParseAddr(text); isHost && err == nil {
			services = append(services, service)
		}
	}
	return services
}

// afterService matches what follows the name of the service.
var afterService = regexp.MustCompile(`^_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

func (services links) contain(name string) bool {
	for _, service := range services {
		if rest, ok := strings.CutPrefix(name, service); ok && afterService.MatchString(rest) {
			return true
		}
	}
	return false
}
