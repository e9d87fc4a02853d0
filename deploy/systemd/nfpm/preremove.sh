#!/bin/sh
# Runs before the files of @NAME@ are removed. An upgrade of a deb ("upgrade") or an rpm (1 or more) stops nothing.
set -e
case "${1:-0}" in
upgrade | [1-9]*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl disable --now @UNITS@
fi
