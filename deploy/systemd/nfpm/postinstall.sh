#!/bin/sh
# Runs after the files of @NAME@ are installed: creates its user and directories, and restarts it if it runs.
set -e
if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers @NAME@.conf
fi
if command -v systemd-tmpfiles >/dev/null; then
	systemd-tmpfiles --create @NAME@.conf
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart @NAME@.service
fi
