//go:build tools

// Package kubernetes pins the API server and the etcd that `make kube-apiserver` builds, in a module of its own. Kubernetes
// replaces its own parts by directories that its module does not have; go.mod names their releases instead.
package kubernetes

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
