#!/bin/sh
# Installs MetaFlow's programs with their systemd units on this host:
#
#   make build && sudo deploy/systemd/install.sh server agent ctl
#
# It keeps existing configuration. With DESTDIR, it only copies files below that directory.
#
#   --bin DIR     directory of the programs (default: bin of this repository)
#   --uninstall   remove them, but keep configuration and data
set -eu

here=$(cd "$(dirname "$0")" && pwd)
bin=$here/../../bin
dest=${DESTDIR:-}
uninstall=
parts=

usage() {
	sed -n '2,9s/^# \{0,1\}//p' "$0"
	exit "$1"
}

while [ $# -gt 0 ]; do
	case $1 in
	--bin)
		[ $# -gt 1 ] || usage 2 >&2
		bin=$2
		shift
		;;
	--uninstall) uninstall=yes ;;
	-h | --help) usage 0 ;;
	server | agent | ctl) parts="$parts $1" ;;
	*)
		echo "install.sh: unknown argument $1" >&2
		usage 2 >&2
		;;
	esac
	shift
done
[ -n "$parts" ] || usage 2 >&2
if [ -z "$dest" ] && [ "$(id -u)" -ne 0 ]; then
	echo "install.sh: run as root, or set DESTDIR" >&2
	exit 1
fi

# live reports whether to control this host's systemd.
live() { [ -z "$dest" ] && [ -d /run/systemd/system ]; }

units() { # part
	case $1 in
	server) echo metaflow-server.service metaflow-standalone.service ;;
	agent) echo metaflow-agent.service ;;
	esac
}

put() { # mode, from, to
	install -d "$(dirname "$dest$3")"
	install -m "$1" "$2" "$dest$3"
}

keep() { # mode, from, to
	[ -e "$dest$3" ] || put "$@"
}

for part in $parts; do
	name=metaflow-$part
	if [ -n "$uninstall" ]; then
		if [ "$part" != ctl ] && live; then
			for unit in $(units "$part"); do
				systemctl disable --now "$unit" || true
			done
		fi
		for unit in $(units "$part"); do
			rm -f "$dest/usr/lib/systemd/system/$unit"
		done
		rm -rf "$dest/usr/share/doc/$name"
		rm -f "$dest/usr/bin/$name" "$dest/usr/lib/sysusers.d/$name.conf" "$dest/usr/lib/tmpfiles.d/$name.conf"
		[ "$part" != ctl ] || rm -f "$dest/usr/bin/metaflow-cli"
		continue
	fi
	if [ ! -x "$bin/$name" ]; then
		echo "install.sh: $bin/$name not found: run 'make build' first" >&2
		exit 1
	fi
	put 0755 "$bin/$name" "/usr/bin/$name"
	put 0644 "$here/../../LICENSE" "/usr/share/doc/$name/copyright"
	if [ "$part" = ctl ]; then
		ln -sf metaflow-ctl "$dest/usr/bin/metaflow-cli"
		continue
	fi
	for unit in $(units "$part"); do
		put 0644 "$here/$unit" "/usr/lib/systemd/system/$unit"
	done
	[ "$part" != agent ] || put 0644 "$here/agent-group.yaml" "/usr/share/doc/$name/agent-group.yaml"
	put 0644 "$here/$name.sysusers" "/usr/lib/sysusers.d/$name.conf"
	put 0644 "$here/$name.tmpfiles" "/usr/lib/tmpfiles.d/$name.conf"
	if [ "$part" = server ]; then
		put 0644 "$here/../../schema/tables.sql" "/usr/share/doc/$name/tables.sql"
		put 0644 "$here/../../schema/tables.cluster.sql" "/usr/share/doc/$name/tables.cluster.sql"
	fi
	keep 0644 "$here/$name.yaml" "/etc/metaflow/$name.yaml"
	keep 0600 "$here/$name.env" "/etc/metaflow/$name.env"
	if [ -z "$dest" ]; then
		systemd-sysusers "$name.conf"
		systemd-tmpfiles --create "$name.conf"
	fi
	echo "$name: edit /etc/metaflow/$name.yaml, then: systemctl enable --now $name"
done
if live; then
	systemctl daemon-reload
fi
