#!/bin/sh
# Runs after the files of @NAME@ are removed. Keeps configuration and data.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
