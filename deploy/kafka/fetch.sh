#!/bin/sh
# Fetches the jars of Apache Kafka, for the tests that run against it.
#
#   deploy/kafka/fetch.sh DIR    puts them into DIR
#
# pom.xml lists the jars; Maven fetches them from the repository that it is configured
# for. DIR is created by a rename: it is either absent or complete. If it exists and is
# not older than pom.xml, the script does nothing.
set -eu

[ $# -eq 1 ] && [ -n "$1" ] || { echo "usage: $0 DIR" >&2; exit 2; }
dir=$1
pom=$(dirname "$0")/pom.xml

for program in mvn java; do
	command -v "$program" >/dev/null 2>&1 || { echo "kafka: $program is not on the PATH" >&2; exit 1; }
done
if [ -d "$dir" ] && ! [ "$pom" -nt "$dir" ]; then
	exit 0
fi

mkdir -p "$(dirname "$dir")"
fresh=$(cd "$(dirname "$dir")" && mktemp -d "$PWD/kafka.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
mvn -B -q -f "$pom" dependency:copy-dependencies -DoutputDirectory="$fresh" -DincludeScope=runtime
rm -rf "$dir"
mv "$fresh" "$dir"
chmod 755 "$dir"
echo "kafka: $(ls "$dir" | wc -l) jars are in $dir" >&2
