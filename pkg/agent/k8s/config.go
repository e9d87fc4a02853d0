package k8s

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validation"
)

// Values of Config.Enabled.
const (
	Auto  = "auto"
	True  = "true"
	False = "false"
)

// Config is what an operator may set. Start from DefaultConfig.
type Config struct {
	// Enabled: whether to watch the pods of this node in Kubernetes: true,
	// false, or auto, which watches them if a service account is mounted,
	// as in a pod, or a kubeconfig is set.
	Enabled string `mapstructure:"enabled" doc:"whether to watch the pods of this node in Kubernetes: true, false, or auto, which watches them if a service account is mounted, as in a pod, or a kubeconfig is set"`
	// Kubeconfig: kubeconfig file with the API server and the credentials,
	// for agents that do not run in a pod; if empty, the service account of
	// the agent's pod.
	Kubeconfig string `mapstructure:"kubeconfig" doc:"kubeconfig file with the API server and the credentials, for agents that do not run in a pod; if empty, the service account of the agent's pod"`
	// Lease: name of the lease that elects the one agent of the cluster
	// which watches its services; if empty, no agent does.
	Lease string `mapstructure:"lease" doc:"name of the lease that elects the one agent of the cluster which watches its services; if empty, no agent does"`
	// Namespace: namespace of the lease; if empty, that of the agent's pod
	// or of the kubeconfig's context.
	Namespace string `mapstructure:"namespace" doc:"namespace of the lease; if empty, that of the agent's pod or of the kubeconfig's context"`
	// Node: name of this node in Kubernetes; if empty, the agent's name.
	Node string `mapstructure:"node" doc:"name of this node in Kubernetes; if empty, the agent's name"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Enabled: Auto, Lease: "metaflow-agent"} }

// Validate reports all problems, each by its key.
func (c Config) Validate() error {
	var errs []error
	if !slices.Contains([]string{Auto, True, False}, c.Enabled) {
		errs = append(errs, fmt.Errorf("enabled: %q is not auto, true or false", c.Enabled))
	}
	for _, field := range []struct {
		key, value string
		check      validation.ValidateNameFunc
	}{
		{"lease", c.Lease, validation.NameIsDNSSubdomain},
		{"namespace", c.Namespace, validation.NameIsDNSLabel},
		{"node", c.Node, validation.NameIsDNSSubdomain},
	} {
		if field.value == "" {
			continue
		}
		if problems := field.check(field.value, false); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("%s: %q is not a valid Kubernetes name: %s", field.key, field.value, strings.Join(problems, "; ")))
		}
	}
	return errors.Join(errs...)
}

// accountDir is where Kubernetes mounts the service account of a pod.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// Wanted reports whether to watch Kubernetes. With Auto it does so if
// Kubeconfig is set or this process is a pod with a service account.
func (c Config) Wanted() bool {
	switch c.Enabled {
	case True:
		return true
	case Auto:
		if c.Kubeconfig != "" {
			return true
		}
		_, err := os.Stat(filepath.Join(accountDir, "token"))
		return err == nil && os.Getenv("KUBERNETES_SERVICE_HOST") != ""
	default:
		return false
	}
}

// namespace returns the namespace of the lease.
func (c Config) namespace() (string, error) {
	if c.Namespace != "" {
		return c.Namespace, nil
	}
	if c.Kubeconfig != "" {
		ns, _, err := c.kubeconfig().Namespace()
		return ns, err
	}
	text, err := os.ReadFile(filepath.Join(accountDir, "namespace"))
	if err != nil {
		return "", fmt.Errorf("find this pod's namespace, because kubernetes.namespace is not set: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
