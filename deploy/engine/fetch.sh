#!/bin/sh
# Fetches ClickHouse as a shared library for the embedded engine.
#
#   deploy/engine/fetch.sh DIR    puts libchdb.so into DIR
#
# npm fetches a pinned package from the registry that it is configured for, and the
# script accepts it only if its integrity hash matches the pinned one. DIR/libchdb.so
# is created by a rename: it is either absent or complete, even if the script runs
# several times in parallel. If the file exists, the script does nothing.
#
# METAFLOW_CHDB_INTEGRITY (sha512-BASE64) pins the package on platforms for which this
# script knows no hash.
set -eu

version=26.7.3-stable.1

say() { echo "engine: $*" >&2; }
die() { say "$*"; exit 1; }
need() { command -v "$1" >/dev/null 2>&1 || die "$1 is not on the PATH: $2"; }

[ $# -eq 1 ] && [ -n "$1" ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$1

if [ -f "$dir/libchdb.so" ]; then
	say "$dir/libchdb.so exists"
	exit 0
fi

elsewhere="install it, or put a clickhouse binary on the PATH, or name a libchdb.so in METAFLOW_CHDB_LIBRARY"
case "$(uname -s)-$(uname -m)" in
Linux-x86_64)
	package=@chdb/lib-linux-x64-gnu
	integrity=sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==
	;;
Linux-aarch64 | Linux-arm64)
	package=@chdb/lib-linux-arm64-gnu
	integrity=
	;;
*) die "no engine library for $(uname -s) on $(uname -m): put a clickhouse binary on the PATH" ;;
esac
integrity=${METAFLOW_CHDB_INTEGRITY:-$integrity}
[ -n "$integrity" ] || die "no integrity hash is pinned for $package: set METAFLOW_CHDB_INTEGRITY to a hash that you trust, or put a clickhouse binary on the PATH"

need npm "$elsewhere"
need tar "$elsewhere"
need sha512sum "$elsewhere"
need base64 "$elsewhere"

mkdir -p "$dir"
dir=$(cd "$dir" && pwd) # npm runs elsewhere

# A second run waits for the first instead of downloading as well. Without flock
# both download, each into a directory of its own: wasteful, still correct.
if command -v flock >/dev/null 2>&1; then
	exec 9>"$dir/.lock"
	flock -n 9 || { say "waiting for another run that is fetching"; flock 9; }
	if [ -f "$dir/libchdb.so" ]; then
		say "$dir/libchdb.so exists"
		exit 0
	fi
fi

tmp=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "fetching $package@$version, about 180 MB"
(cd "$tmp" && npm pack --silent --ignore-scripts "$package@$version" >/dev/null) ||
	die "npm could not fetch $package@$version: run 'npm pack $package@$version' to see why"
set -- "$tmp"/*.tgz
[ -f "$1" ] || die "npm pack left no archive in $tmp"

say "checking its integrity"
want=$(printf %s "${integrity#sha512-}" | base64 -d | od -An -v -tx1 | tr -d ' \n')
got=$(sha512sum "$1" | cut -d' ' -f1)
[ "$want" = "$got" ] || die "integrity of $package@$version: sha512 is $got, want $want: nothing was installed"

say "unpacking about 570 MB"
tar -xzf "$1" -C "$tmp" package/libchdb.so || die "unpack $1: see above"
chmod 755 "$tmp/package/libchdb.so"
mv -f "$tmp/package/libchdb.so" "$dir/libchdb.so"
say "$dir/libchdb.so is ready"
