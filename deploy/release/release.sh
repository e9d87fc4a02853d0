#!/bin/sh
# Makes a release in a directory:
#
#   deploy/release/release.sh DIR
#
#   metaflow-VERSION.tgz                       the chart
#   metaflow-server-VERSION.oci.tar            images of server and agent for all architectures, as OCI archives
#   metaflow-agent-VERSION.oci.tar
#   metaflow-VERSION-linux-ARCH.tar.gz         the programs
#   *.deb, *.rpm                               packages
#   metaflow-{server,agent,ctl}.cdx.json       what each program is made of (SBOM, CycloneDX)
#   SHA256SUMS                                 checksums of all of it
#
# VERSION defaults to the chart's appVersion, ARCHS to "amd64 arm64". With REGISTRY, for example registry.example.com/metaflow,
# images and chart are also pushed there, as REGISTRY/metaflow-server:VERSION, REGISTRY/metaflow-agent:VERSION and
# oci://REGISTRY/charts/metaflow. The images need Docker with buildx; IMAGES=no leaves them out.
set -eu

HELM=helm.sh/helm/v3/cmd/helm@v3.22.0
SBOM=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
GO=${GO:-go}

[ $# -eq 1 ] && [ -n "$1" ] || { sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
[ -z "$(ls -A "$out")" ] || { echo "release: $out is not empty" >&2; exit 1; }
cd "$(dirname "$0")/../.."
VERSION=${VERSION:-$(sed -n 's/^appVersion: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' deploy/helm/metaflow/Chart.yaml)}
ARCHS=${ARCHS:-amd64 arm64}
export VERSION
if [ "${IMAGES:-}" != no ] && ! docker buildx version >/dev/null 2>&1; then
	echo "release: images need Docker with buildx; IMAGES=no leaves them out" >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for arch in $ARCHS; do
	echo "release: programs and packages for $arch" >&2
	dir=metaflow-$VERSION-linux-$arch
	mkdir "$work/$dir"
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch $GO build -trimpath -ldflags='-s -w' -o "$work/$dir/" ./cmd/...
	cp LICENSE "$work/$dir/"
	tar -C "$work" -czf "$out/$dir.tar.gz" "$dir"
	ARCH=$arch deploy/systemd/packages.sh "$out"
done
for program in metaflow-server metaflow-agent metaflow-ctl; do
	$GO run "$SBOM" bin -json -licenses -version "v$VERSION" -output "$out/$program.cdx.json" "$work/$dir/$program"
done

echo "release: chart" >&2
$GO run "$HELM" package deploy/helm/metaflow --app-version "$VERSION" --destination "$out" >/dev/null
if [ -n "${REGISTRY:-}" ]; then
	$GO run "$HELM" push "$out"/metaflow-[0-9]*.tgz "oci://$REGISTRY/charts"
fi

if [ "${IMAGES:-}" != no ]; then
	platforms=$(printf 'linux/%s,' $ARCHS)
	for target in server agent; do
		echo "release: image of the $target" >&2
		set -- --platform "${platforms%,}" --file deploy/docker/Dockerfile --target "$target" \
			--label "org.opencontainers.image.version=$VERSION" --label org.opencontainers.image.licenses=Apache-2.0 \
			--output "type=oci,dest=$out/metaflow-$target-$VERSION.oci.tar"
		[ -z "${REGISTRY:-}" ] || set -- "$@" --output "type=registry,name=$REGISTRY/metaflow-$target:$VERSION"
		docker buildx build "$@" .
	done
fi
(cd "$out" && sha256sum -- * >SHA256SUMS)
