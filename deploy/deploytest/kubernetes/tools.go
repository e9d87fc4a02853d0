//go:build tools

// Package kubernetes pins the API server and etcd that `make kube-apiserver`
// builds, in a module of its own. Kubernetes replaces its own modules by
// directories that its release does not contain; go.mod names their releases
// instead.
package kubernetes

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
