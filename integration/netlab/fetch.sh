#!/bin/sh
# Fetches the real programs that the lab runs.
#
#   integration/netlab/fetch.sh DIR    puts them into DIR
#
# apt-get, pip and npm fetch them from where they are configured to. Nothing is
# installed on the machine: Debian's packages are unpacked below DIR. requirements.txt
# and package.json pin the versions of Python's and Node's packages; Debian's packages
# have the versions of the machine's release, because its archive keeps no others.
# DIR/complete is written last, and a run that finds it current does nothing.
set -eu

[ $# -eq 1 ] && [ -n "$1" ] || { echo "usage: $0 DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
say() { echo "netlab: $*" >&2; }
missing=
for program in apt-get apt-cache dpkg-deb python3 npm node; do
	command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
[ -z "$missing" ] || { say "not on the PATH:$missing"; exit 1; }

mkdir -p "$1"
dir=$(cd "$1" && pwd)
if command -v flock >/dev/null 2>&1; then
	exec 9>"$dir/.lock"
	flock 9
fi
want=$(cat "$here/fetch.sh" "$here/programs/requirements.txt" "$here/programs/package.json" | cksum)
[ "$(cat "$dir/complete" 2>/dev/null || true)" != "$want" ] || exit 0
rm -f "$dir/complete"

# The packages with the libraries that they need and the machine may lack.
packages="nginx redis-server redis-tools postgresql-15 libfaketime
	libhiredis0.14 libjemalloc2 liblua5.1-0 liblzf1 lua-bitop lua-cjson libatomic1 libpcre2-8-0 libpq5 libicu72 libxml2 libldap-2.5-0"
say "Debian: nginx, Redis, PostgreSQL, libfaketime"
debs=$(mktemp -d)
trap 'rm -rf "$debs"' EXIT
chmod 755 "$debs" # apt-get downloads as a user of its own
(cd "$debs" && apt-get -q -q -o APT::Sandbox::User=root download $packages >&2) || { say "apt-get could not download: run apt-get update"; exit 1; }
rm -rf "$dir/debian"
for deb in "$debs"/*.deb; do
	dpkg-deb -x "$deb" "$dir/debian"
done

say "PyPI: Flask, gunicorn, gRPC and their instrumentation"
rm -rf "$dir/python"
python3 -m venv "$dir/python"
"$dir/python/bin/pip" install -q --disable-pip-version-check -r "$here/programs/requirements.txt" >&2

say "npm: express and its instrumentation"
mkdir -p "$dir/node"
cp "$here/programs/package.json" "$dir/node/"
(cd "$dir/node" && npm install --silent --no-audit --no-fund --ignore-scripts >&2)

echo "$want" >"$dir/complete"
say "the programs are in $dir"
