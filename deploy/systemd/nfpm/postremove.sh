#!/bin/sh
# After the files of @NAME@ have gone. Configuration and data stay.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
