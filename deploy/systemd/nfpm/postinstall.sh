#!/bin/sh
# Runs after the files of @NAME@ are installed: creates its user and directories, and restarts it if it runs. Hosts
# without systemd's tools, and chroots without /proc where those fail, get the same by hand.
set -e
home=$(sed -n 's|^u @NAME@ .* \(/.*\)$|\1|p' /usr/lib/sysusers.d/@NAME@.conf)
if ! getent passwd @NAME@ >/dev/null; then
	systemd-sysusers @NAME@.conf 2>/dev/null || true
fi
if ! getent passwd @NAME@ >/dev/null; then
	getent group @NAME@ >/dev/null || groupadd --system @NAME@
	useradd --system --gid @NAME@ --home-dir "$home" --no-create-home --shell /usr/sbin/nologin @NAME@
fi
if ! systemd-tmpfiles --create @NAME@.conf 2>/dev/null; then
	while read -r type path mode user group _; do
		case $type in
		d) install -d -m "$mode" -o "$user" -g "$group" "$path" ;;
		z) [ ! -e "$path" ] || { chown "$user:$group" "$path" && chmod "$mode" "$path"; } ;;
		esac
	done </usr/lib/tmpfiles.d/@NAME@.conf
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	for unit in @UNITS@; do
		systemctl try-restart "$unit"
	done
fi
