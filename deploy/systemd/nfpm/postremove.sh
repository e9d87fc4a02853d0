#!/bin/sh
# Runs after the files of @NAME@ are removed. Keeps configuration and data, except for the purge of a deb, which removes
# them and the user.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "${1:-}" = purge ]; then
	rm -rf @DATA@
	rmdir /etc/metaflow 2>/dev/null || true
	if getent passwd @NAME@ >/dev/null; then
		userdel @NAME@ || true
	fi
fi
