#!/bin/sh
# Installs the deb packages of a directory in a bare Debian tree and runs their units under a systemd of its own, in
# systemd-nspawn: starts them, kills and stops their programs, gives them a wrong configuration.
#
#   sudo deploy/systemd/try-units.sh DIR [LIBRARY]
#
# It needs debootstrap, systemd-nspawn (Debian: systemd-container) and the engine's LIBRARY (default: the one that
# `make engine` fetched). It has a network of its own. TREE names a Debian tree with systemd, dbus and iproute2 to copy,
# instead of making one.
set -eu

[ $# -gt 0 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
packages=$(cd "$1" && pwd)
library=$(realpath "${2:-$(ls "$(dirname "$0")"/../../.cache/chdb/*/libchdb.so)}")
root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
if [ -n "${TREE:-}" ]; then
	cp -a "$TREE/." "$root"
else
	echo "debootstrap..."
	debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2 stable "$root" >/dev/null
fi
cp "$packages"/*.deb "$root"
chroot "$root" sh -c 'dpkg -i /*.deb' >/dev/null
echo METAFLOW_CHDB_LIBRARY=/usr/lib/libchdb.so >"$root/etc/metaflow/metaflow-standalone.env"

cp "$(dirname "$0")/wait-for.sh" "$root"
cat >"$root/try.sh" <<'END'
#!/bin/sh
set -eu
fail() {
	echo "FAILED: $*"
	journalctl --no-pager -q -n 60 -u 'metaflow-*'
	exit 1
}
. /wait-for.sh
is() { [ "$(systemctl show -P "$2" "$1")" = "$3" ]; } # unit, property, value
ip link add host0 type veth peer name host1
ip address add 192.0.2.7/24 dev host0
ip link set host1 up
ip link set host0 up

echo "start standalone and agent"
systemctl start metaflow-standalone metaflow-agent || fail "systemctl start"
wait_for "the agent runs" sh -c 'metaflow-ctl agent list | grep -w running'
metaflow-ctl agent-group-config update default -f /usr/share/doc/metaflow-agent/agent-group.yaml || fail "agent-group-config"
metaflow-ctl verify --spans 100 || fail "metaflow-ctl verify"
# The unit's sandbox leaves the agent the sources of flow data.
cat >/ask <<'ASK'
exec 3<>/dev/tcp/127.0.0.1/8123
printf 'POST / HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s' ${#1} "$1" >&3
sed '1,/^\r$/d' <&3
ASK
wait_for "flow data" sh -c "bash /ask 'SELECT count() FROM metaflow.flows' | grep '^[1-9]'"
# Only a host's own PID namespace shows the processes of containers.
problems=$(metaflow-ctl agent show "$(hostname)" | grep '^exception ' | grep -v 'PID namespace' || true)
[ -z "$problems" ] || fail "problems of the agent: $problems"
for unit in metaflow-standalone metaflow-agent; do
	is $unit NRestarts 0 || fail "$unit was restarted"
	[ "$(systemctl show -P User $unit)" != root ] || fail "$unit runs as root"
	systemd-analyze security --no-pager $unit | tail -1
done

echo "kill: systemd starts them again, and the data stays"
for unit in metaflow-standalone metaflow-agent; do
	systemctl kill -s KILL --kill-who=main $unit
	wait_for "$unit runs again" is $unit NRestarts 1
done
wait_for "the agent runs again" sh -c 'metaflow-ctl agent list | grep -w running'
wait_for "the agent's port" sh -c 'metaflow-ctl verify --spans 20'

echo "stop"
systemctl stop metaflow-agent metaflow-standalone
for unit in metaflow-standalone metaflow-agent; do
	is $unit ActiveState inactive && is $unit Result success || fail "$unit stopped: $(systemctl show -P Result $unit)"
done

echo "a wrong configuration is not tried again"
for unit in metaflow-server metaflow-agent; do
	echo 'nonsense: 1' >>/etc/metaflow/$unit.yaml
	systemctl start $unit || true
	wait_for "$unit failed" is $unit ActiveState failed
	is $unit ExecMainStatus 2 && is $unit NRestarts 0 || fail "$unit: status $(systemctl show -P ExecMainStatus $unit), restarts $(systemctl show -P NRestarts $unit)"
	sed -i '$d' /etc/metaflow/$unit.yaml
	systemctl reset-failed $unit
done

echo "a server without Kafka waits, and says for what"
systemctl start metaflow-server || fail "systemctl start metaflow-server"
wait_for "the server says what it waits for" sh -c 'journalctl -q -u metaflow-server | grep "127.0.0.1:9092: connect: connection refused"'
is metaflow-server ActiveState active || fail "metaflow-server ended"
systemctl stop metaflow-server
is metaflow-server Result success || fail "metaflow-server stopped: $(systemctl show -P Result metaflow-server)"
echo ok
END
chmod +x "$root/try.sh"
cat >"$root/etc/systemd/system/try.service" <<'END'
[Service]
Type=oneshot
ExecStart=/try.sh
StandardOutput=file:/try.log
StandardError=inherit
ExecStopPost=systemctl poweroff
TimeoutStartSec=20min
END
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../try.service "$root/etc/systemd/system/multi-user.target.wants/try.service"
echo metaflow-try >"$root/etc/hostname"

echo "boot"
systemd-nspawn -q -D "$root" --register=no --keep-unit --private-network --bind-ro="$library:/usr/lib/libchdb.so" -b >"$root/boot.log" 2>&1 </dev/null || true
cat "$root/try.log"
[ "$(tail -1 "$root/try.log")" = ok ] || { tail -20 "$root/boot.log" >&2; exit 1; }
