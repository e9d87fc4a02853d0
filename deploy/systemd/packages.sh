#!/bin/sh
# Builds deb and rpm packages of server, agent and ctl into a directory:
#
#   deploy/systemd/packages.sh DIR [PROGRAM...]
#
# VERSION defaults to the chart's appVersion, ARCH (a GOARCH) to this machine's.
set -eu

NFPM=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
GO=${GO:-go}

[ $# -gt 0 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
out=$1
shift
[ $# -gt 0 ] || set -- metaflow-server metaflow-agent metaflow-ctl
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ARCH=${ARCH:-$($GO env GOARCH)}
VERSION=${VERSION:-$(sed -n 's/^appVersion: *//p' deploy/helm/metaflow/Chart.yaml)}
BIN=$work/bin
SCRIPTS=$work/scripts

# fill replaces @NAMES@ by their values.
fill() {
	sed "s|@NAME@|$name|g; s|@ARCH@|$ARCH|g; s|@VERSION@|$VERSION|g; s|@BIN@|$BIN|g; s|@SCRIPTS@|$SCRIPTS|g; s|@UNITS@|$units|g; s|@DATA@|$data|g" "$1" >"$2"
}

for name in "$@"; do
	CGO_ENABLED=0 GOOS=linux GOARCH=$ARCH $GO build -trimpath -ldflags="-s -w" -o "$BIN/$name" "./cmd/$name"
	units=$name.service
	data=/var/lib/$name
	if [ "$name" = metaflow-server ]; then
		units="metaflow-server.service metaflow-standalone.service"
		data="/var/lib/metaflow-standalone /etc/metaflow/metaflow-standalone.env"
	fi
	mkdir -p "$SCRIPTS/$name"
	for script in postinstall preremove postremove; do
		fill "deploy/systemd/nfpm/$script.sh" "$SCRIPTS/$name/$script.sh"
	done
	fill "deploy/systemd/nfpm/$name.yaml" "$work/$name.yaml"
	for format in deb rpm; do
		$GO run "$NFPM" package --config "$work/$name.yaml" --packager "$format" --target "$out"
	done
done
