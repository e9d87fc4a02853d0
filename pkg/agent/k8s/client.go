package k8s

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryclient "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Client is an API client of Kubernetes. client-go's kubernetes.Interface
// satisfies it.
type Client interface {
	CoreV1() coreclient.CoreV1Interface
	DiscoveryV1() discoveryclient.DiscoveryV1Interface
	CoordinationV1() coordinationclient.CoordinationV1Interface
}

// client has only the API groups that this package uses. The clientset of all
// groups takes several megabytes of code.
type client struct {
	core         *coreclient.CoreV1Client
	discovery    *discoveryclient.DiscoveryV1Client
	coordination *coordinationclient.CoordinationV1Client
}

func (c *client) CoreV1() coreclient.CoreV1Interface                         { return c.core }
func (c *client) DiscoveryV1() discoveryclient.DiscoveryV1Interface          { return c.discovery }
func (c *client) CoordinationV1() coordinationclient.CoordinationV1Interface { return c.coordination }

// kubeconfig returns a loader that reads the kubeconfig file on first use.
func (c Config) kubeconfig() clientcmd.ClientConfig {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
}

// connect returns a client of the API server that the kubeconfig names, or of
// the cluster that this process is a pod of.
func (c Config) connect() (Client, error) {
	find := rest.InClusterConfig
	if c.Kubeconfig != "" {
		find = c.kubeconfig().ClientConfig
	}
	cfg, err := find()
	if err != nil {
		return nil, fmt.Errorf("find the Kubernetes API server: %w", err)
	}
	cfg.ContentConfig.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	cfg.ContentConfig.ContentType = runtime.ContentTypeProtobuf
	return newClient(cfg)
}

func newClient(cfg *rest.Config) (Client, error) {
	cfg.UserAgent = "metaflow-agent"
	cfg.WarningHandler = rest.NoWarnings{} // they concern API usage, not operators
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	var c client
	var errs [3]error
	c.core, errs[0] = coreclient.NewForConfigAndClient(cfg, h)
	c.discovery, errs[1] = discoveryclient.NewForConfigAndClient(cfg, h)
	c.coordination, errs[2] = coordinationclient.NewForConfigAndClient(cfg, h)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API: %w", err)
	}
	return &c, nil
}

// expected reports whether err is a normal end of a watch: the server ends
// watches every few minutes and discards old versions.
func expected(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Code == http.StatusGone {
		return true
	}
	return errors.Is(err, io.EOF) || apierrors.IsResourceExpired(err)
}
