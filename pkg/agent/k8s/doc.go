// Package k8s watches Kubernetes for an agent: the pods of the agent's node
// and, in one agent of the cluster, the services with their endpoints.
//
// A [Watcher] keeps what it has seen in memory, for [Watcher.Pod], and reports
// it to a server through a [Reporter]. It reports changes after one second, and
// everything every few hours and whenever [Watcher.ReportAll] is called. A
// report that fails is retried later, with the latest state of each pod and
// service.
//
// While the API server is unavailable, the last known state stays valid;
// client-go lists and watches again by itself. A pod has ended once it will not
// run again, even while its object still exists: from then on Kubernetes may
// give its addresses to other pods.
//
// The agent that holds a lease watches the services. A former holder stops
// within the lease's duration; two agents that report at once do no harm.
//
// Objects are stripped before they are stored (strip.go). No other package
// imports client-go. The package trusts Kubernetes to bound the sizes of its
// objects.
//
// Concurrency: Run owns all goroutines, including client-go's. All methods are
// safe for concurrent use.
package k8s
