# wait_for runs a command until it succeeds, and calls fail with a text after two minutes:
#
#   wait_for TEXT COMMAND...
wait_for() {
	what=$1
	shift
	n=0
	until "$@" >/dev/null 2>&1; do
		n=$((n + 1))
		[ $n -lt 120 ] || fail "$what"
		sleep 1
	done
}
