// Package deploytest tests everything in deploy that is not a program: the Helm
// chart, the collector's manifests, systemd units, packages, the Dockerfile and
// the compose file. No test needs a cluster.
//
// It is a separate module, so that the libraries of Helm and Kubernetes do not
// become dependencies of the programs.
package deploytest
