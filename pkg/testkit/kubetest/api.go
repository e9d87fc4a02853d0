// Package kubetest is a Kubernetes API server for tests: lists, watches and leases over a real
// connection, of the pods, services and endpoint slices that a test puts into it.
package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// API speaks as much of the Kubernetes API as an agent needs: lists, watches, leases with
// conflicts; over a real connection that can be cut. Make it with New. Its methods may be called by
// several goroutines.
type API struct {
	t      testing.TB
	server *httptest.Server

	mu      sync.Mutex
	version int
	oldest  int // versions before it are forgotten
	down    bool
	refused map[string]bool              // resources that are forbidden
	objects map[string]map[string]Object // by resource, by namespace/name
	events  []event
	moved   chan struct{}  // closed when there is more
	cut     chan struct{}  // closed when connections are
	asked   map[string]int // requests, by what
}

// codecs decode leases. Those of client-go know all APIs of Kubernetes, which a test would link.
var codecs = func() serializer.CodecFactory {
	known := runtime.NewScheme()
	if err := coordination.AddToScheme(known); err != nil {
		panic(err)
	}
	return serializer.NewCodecFactory(known)
}()

// Object is a pod, a service, an endpoint slice or a lease.
type Object interface {
	meta.Object
	// of the kinds below
}

type event struct {
	resource, kind string
	version        int
	text           json.RawMessage
	node           string
}

// New returns an API without objects, which ends with the test.
func New(t testing.TB) *API {
	a := &API{
		t: t, version: 100, objects: map[string]map[string]Object{"pods": {}, "services": {}, "endpointslices": {}, "leases": {}},
		moved: make(chan struct{}), cut: make(chan struct{}), asked: map[string]int{}, refused: map[string]bool{},
	}
	a.server = httptest.NewServer(a)
	t.Cleanup(a.server.Close)
	t.Cleanup(a.HangUp)
	return a
}

// URL is where the API is.
func (a *API) URL() string { return a.server.URL }

// Kubeconfig writes a kubeconfig for the API, with a namespace in its context, and returns its name.
func (a *API) Kubeconfig(namespace string) string {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q}}]
users: [{name: test, user: {token: test}}]
contexts: [{name: test, context: {cluster: test, user: test, namespace: %q}}]
current-context: test
`, a.URL(), namespace)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return file
}

// HangUp closes the connections that are open.
func (a *API) HangUp() {
	a.mu.Lock()
	close(a.cut)
	a.cut = make(chan struct{})
	a.mu.Unlock()
	a.server.CloseClientConnections()
}

// SetDown has every request answered with 503, or not any more.
func (a *API) SetDown(down bool) {
	a.mu.Lock()
	a.down = down
	a.mu.Unlock()
	a.HangUp()
}

// Forbid has requests for a resource, such as "leases", answered with 403.
func (a *API) Forbid(resource string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused[resource] = true
}

// ForgetHistory makes watches from before now fail with 410.
func (a *API) ForgetHistory() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.oldest = a.version + 1
	a.events = nil
	a.version++
}

var kinds = map[string]string{"pods": "Pod", "services": "Service", "endpointslices": "EndpointSlice", "leases": "Lease"}

func resourceOf(o Object) string {
	switch o.(type) {
	case *core.Pod:
		return "pods"
	case *core.Service:
		return "services"
	case *discovery.EndpointSlice:
		return "endpointslices"
	default:
		return "leases"
	}
}

func apiVersion(resource string) string {
	return map[string]string{"pods": "v1", "services": "v1", "endpointslices": "discovery.k8s.io/v1", "leases": "coordination.k8s.io/v1"}[resource]
}

// Put creates or changes an object.
func (a *API) Put(o Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.putLocked(o)
}

func (a *API) putLocked(o Object) {
	resource, key := resourceOf(o), o.GetNamespace()+"/"+o.GetName()
	kind := "MODIFIED"
	if a.objects[resource][key] == nil {
		kind = "ADDED"
	}
	a.version++
	o.SetResourceVersion(strconv.Itoa(a.version))
	a.objects[resource][key] = o
	a.announce(kind, o)
}

// Remove deletes an object.
func (a *API) Remove(o Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resource := resourceOf(o)
	delete(a.objects[resource], o.GetNamespace()+"/"+o.GetName())
	a.version++
	o.SetResourceVersion(strconv.Itoa(a.version))
	a.announce("DELETED", o)
}

func (a *API) announce(kind string, o Object) {
	a.events = append(a.events, event{resourceOf(o), kind, a.version, a.encode(o), nodeName(o)})
	close(a.moved)
	a.moved = make(chan struct{})
}

func nodeName(o Object) string {
	if p, ok := o.(*core.Pod); ok {
		return p.Spec.NodeName
	}
	return ""
}

func (a *API) encode(o Object) json.RawMessage {
	resource := resourceOf(o)
	text, err := json.Marshal(o)
	if err != nil {
		a.t.Error(err)
	}
	return json.RawMessage(fmt.Sprintf(`{"kind":%q,"apiVersion":%q,`, kinds[resource], apiVersion(resource)) + string(text[1:]))
}

// Requests is how many there were, for example of "GET pods watch=true".
func (a *API) Requests(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[what]
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	resource, name := parts[len(parts)-1], ""
	if kinds[resource] == "" {
		resource, name = parts[len(parts)-2], parts[len(parts)-1]
	}
	node, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName=")
	if resource == "pods" && node == "" {
		a.t.Errorf("pods of all nodes are asked for: %s", r.URL)
	}
	a.mu.Lock()
	down, refused := a.down, a.refused[resource]
	watching := r.URL.Query().Get("watch") != ""
	a.asked[fmt.Sprintf("%s %s watch=%t", r.Method, resource, watching)]++
	a.mu.Unlock()
	switch {
	case down:
		a.fail(w, http.StatusServiceUnavailable, "ServiceUnavailable")
	case refused:
		a.fail(w, http.StatusForbidden, "Forbidden")
	case resource == "leases":
		a.lease(w, r, name)
	case watching:
		a.watch(w, r, resource, node)
	default:
		a.list(w, resource, node)
	}
}

// What cannot be written any more is of a client that is gone.
func (a *API) fail(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d,"message":"as the test wants it"}`, reason, code)
}

func (a *API) list(w http.ResponseWriter, resource, node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := []json.RawMessage{}
	for _, o := range a.objects[resource] {
		if nodeName(o) == node {
			items = append(items, a.encode(o))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	err := json.NewEncoder(w).Encode(map[string]any{
		"kind": kinds[resource] + "List", "apiVersion": apiVersion(resource),
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(a.version)}, "items": items,
	})
	if err != nil {
		a.t.Error(err)
	}
}

func (a *API) watch(w http.ResponseWriter, r *http.Request, resource, node string) {
	query := r.URL.Query()
	a.mu.Lock()
	cut := a.cut
	next, err := strconv.Atoi(query.Get("resourceVersion"))
	initial := query.Get("sendInitialEvents") == "true"
	if (err != nil || next < a.oldest) && !initial {
		a.mu.Unlock()
		a.fail(w, http.StatusGone, "Expired")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if initial {
		for _, o := range a.objects[resource] {
			if nodeName(o) == node {
				_, _ = fmt.Fprintf(w, `{"type":"ADDED","object":%s}`, a.encode(o))
			}
		}
		_, _ = fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":%q,"apiVersion":%q,"metadata":{"resourceVersion":"%d","annotations":{"k8s.io/initial-events-end":"true"}}}}`,
			kinds[resource], apiVersion(resource), a.version)
		next = a.version
	}
	a.mu.Unlock()
	for {
		w.(http.Flusher).Flush()
		a.mu.Lock()
		moved := a.moved
		for _, e := range a.events {
			if e.version > next && e.resource == resource && e.node == node {
				_, _ = fmt.Fprintf(w, `{"type":%q,"object":%s}`, e.kind, e.text)
				next = e.version
			}
		}
		a.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-moved:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// lease is read, created or changed, unless somebody else did meanwhile.
func (a *API) lease(w http.ResponseWriter, r *http.Request, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Method == http.MethodGet {
		if o := a.objects["leases"]["metaflow/"+name]; o != nil {
			a.answer(w, o)
			return
		}
		a.fail(w, http.StatusNotFound, "NotFound")
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // cut
	}
	l := new(coordination.Lease)
	if _, _, err := codecs.UniversalDeserializer().Decode(body, nil, l); err != nil {
		a.t.Error(err)
	}
	key := l.Namespace + "/" + l.Name
	known := a.objects["leases"][key]
	if r.Method == http.MethodPost && known != nil || r.Method == http.MethodPut && (known == nil || known.GetResourceVersion() != l.ResourceVersion) {
		a.fail(w, http.StatusConflict, "Conflict")
		return
	}
	a.putLocked(l)
	a.answer(w, l)
}

func (a *API) answer(w http.ResponseWriter, o Object) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(a.encode(o)) // a client that is gone
}

// Holder is who holds the lease.
func (a *API) Holder() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l, ok := a.objects["leases"]["metaflow/metaflow-agent"].(*coordination.Lease); ok && l.Spec.HolderIdentity != nil {
		return *l.Spec.HolderIdentity
	}
	return ""
}
