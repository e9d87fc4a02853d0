#!/bin/sh
# Fetches promtool, for the tests of the chart's alerts, and prometheus, for that of links
# from metrics to traces.
#
#   deploy/prometheus/fetch.sh DIR    puts them into DIR
#
# It takes the programs out of Debian's package prometheus, without installing it: the
# package would start a server. If DIR has them, the script does nothing.
set -eu

[ $# -eq 1 ] && [ -n "$1" ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$1
if [ -x "$dir/promtool" ] && [ -x "$dir/prometheus" ]; then
	exit 0
fi
for program in apt-get dpkg-deb; do
	command -v "$program" >/dev/null 2>&1 || { echo "prometheus: $program is not on the PATH" >&2; exit 1; }
done

mkdir -p "$dir"
fresh=$(mktemp -d "$(cd "$dir" && pwd)/fetch.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
chmod 755 "$fresh" # apt-get downloads as another user
(cd "$fresh" && apt-get download -q prometheus)
dpkg-deb --fsys-tarfile "$fresh"/prometheus_*.deb | tar -x -C "$fresh" ./usr/bin/promtool ./usr/bin/prometheus
mv "$fresh/usr/bin/promtool" "$fresh/usr/bin/prometheus" "$dir"
