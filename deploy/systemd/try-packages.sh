#!/bin/sh
# Installs the deb packages of a directory in a bare Debian tree, starts the units' programs by hand as their users, and
# purges the packages again:
#
#   sudo deploy/systemd/try-packages.sh DIR [LIBRARY]
#
# It needs debootstrap, and the engine's LIBRARY (default: the one that `make engine` fetched). Everything runs in a network
# namespace and a mount namespace of its own. TREE names a bare Debian tree to copy, instead of making one.
set -eu

[ $# -gt 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
if [ "${TRY_INSIDE:-}" != yes ]; then
	TRY_INSIDE=yes exec unshare --net --mount --pid --fork --kill-child sh "$0" "$@"
fi
packages=$(cd "$1" && pwd)
library=${2:-$(ls "$(dirname "$0")"/../../.cache/chdb/*/libchdb.so)}
ip link set lo up
ip link add host0 type veth peer name host1
ip link set host1 up
ip address add 192.0.2.7/24 dev host0
ip link set host0 up

root=$(mktemp -d)
cleanup() {
	for path in dev proc libchdb.so; do
		umount -R "$root/$path" 2>/dev/null || true
	done
	rm -rf --one-file-system "$root"
}
trap cleanup EXIT
if [ -n "${TREE:-}" ]; then
	cp -a "$TREE/." "$root"
else
	echo "debootstrap..."
	debootstrap --variant=minbase stable "$root" >/dev/null
fi
mkdir "$root/packages"
cp "$packages"/*.deb "$root/packages"

fail() {
	cat "$root"/*.log >&2 2>/dev/null || true
	echo "FAILED: $*" >&2
	exit 1
}
. "$(dirname "$0")/wait-for.sh"
in_tree() { chroot "$root" "$@"; }
as() { # user, command...; for the background: it replaces the shell
	user=$1
	shift
	exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
}

echo "install without /proc"
[ ! -e "$root/proc/self" ] || fail "the tree has /proc"
in_tree sh -c 'dpkg -i /packages/*.deb' >/dev/null || fail "dpkg -i"
for user in metaflow-server metaflow-agent; do
	in_tree getent passwd $user >/dev/null || fail "no user $user"
	[ -s "$root/usr/share/doc/$user/copyright" ] || fail "no license of $user"
done
[ "$(stat -c %a "$root/var/lib/metaflow-agent")" = 750 ] || fail "mode of the spool's directory"
[ "$(in_tree stat -c %U /var/lib/metaflow-agent)" = metaflow-agent ] || fail "owner of the spool's directory"
for program in server agent ctl; do
	! grep -q '\.symtab' "$root/usr/bin/metaflow-$program" || fail "metaflow-$program is not stripped"
done
in_tree metaflow-server config check --config /etc/metaflow/metaflow-server.yaml >/dev/null || fail "the server's configuration"
in_tree metaflow-agent config check --config /etc/metaflow/metaflow-agent.yaml >/dev/null || fail "the agent's configuration"

echo "start standalone and agent"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
touch "$root/libchdb.so"
mount --bind "$library" "$root/libchdb.so"
mkdir "$root/var/lib/metaflow-standalone"
in_tree chown metaflow-server: /var/lib/metaflow-standalone
as metaflow-server env METAFLOW_CHDB_LIBRARY=/libchdb.so metaflow-server standalone --data-dir /var/lib/metaflow-standalone >"$root/server.log" 2>&1 &
server=$!
wait_for "the server is ready" grep -q 'MetaFlow is ready' "$root/server.log"
in_tree metaflow-agent check --config /etc/metaflow/metaflow-agent.yaml --no-flow || fail "metaflow-agent check"
as metaflow-agent metaflow-agent run --config /etc/metaflow/metaflow-agent.yaml >"$root/agent.log" 2>&1 &
agent=$!
in_tree metaflow-ctl agent-group-config update default -f /usr/share/doc/metaflow-agent/agent-group.yaml
wait_for "the agent is configured" sh -c "chroot '$root' metaflow-ctl agent list | grep -w running"
in_tree metaflow-ctl verify --endpoint http://127.0.0.1:38086 --clickhouse 127.0.0.1:9000 || fail "metaflow-ctl verify"

echo "purge"
kill $agent $server
wait $agent $server || fail "the programs did not stop in order: status $?"
in_tree dpkg --purge metaflow-server metaflow-agent metaflow-ctl >/dev/null || fail "dpkg --purge"
for path in /etc/metaflow /var/lib/metaflow-agent /var/lib/metaflow-standalone /usr/bin/metaflow-server; do
	[ ! -e "$root$path" ] || fail "$path is left"
done
! grep -q metaflow "$root/etc/passwd" || fail "users are left: $(grep metaflow "$root/etc/passwd")"
echo ok
