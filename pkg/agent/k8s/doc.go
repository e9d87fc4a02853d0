// Package k8s watches Kubernetes for an agent: the pods of its own node, and, by one agent of all,
// the services of the cluster with their endpoints.
//
// A [Watcher] keeps what it has seen in memory, for [Watcher.Pod], and reports it through a
// [Reporter] to a server: what changed a second after it did, and everything every few hours and
// when [Watcher.ReportAll] asks for it. What could not be reported is kept, as the latest of each pod
// and service, and reported later.
//
// While the API server is away, what was seen stays in force; client-go lists and watches
// again by itself. A pod has ended when it will run no more, even though the object is still there:
// Kubernetes gives its addresses to others from then on.
//
// Services are watched by whichever agent holds a lease. A former holder stops within the
// lease's time; two that report at once do no harm.
//
// Objects are stripped before they are kept: see strip.go. The package is the only one that knows client-go.
// What Kubernetes says is trusted as far as its sizes are bounded by Kubernetes.
//
// Concurrency: Run owns all goroutines, client-go's too. All methods may be called by several goroutines.
package k8s
