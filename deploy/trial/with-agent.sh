#!/bin/bash
# Runs a standalone server and an agent beside it in the foreground, until Ctrl-C:
#
#   deploy/trial/with-agent.sh BIN DATA_DIR [FLAGS of standalone]
#
# The agent receives OTLP/HTTP at port AGENT_PORT (38086) of this host and watches its TCP connections, as far as the
# privileges of this user go. AGENT_HTTP (127.0.0.1:38087) has its /ready and /metrics.
set -eu

[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bin=$1
data=$2
shift 2
port=${AGENT_PORT:-38086}
http=${AGENT_HTTP:-127.0.0.1:38087}
case $http in *:*) ;; *) http=127.0.0.1:$http ;; esac

# tcp prints the file by which bash connects to an address, such as 127.0.0.1:80, :80 or [::1]:80.
tcp() {
	host=${1%:*}
	host=${host#[}
	host=${host%]}
	echo "/dev/tcp/${host:-127.0.0.1}/${1##*:}"
}
# taken reports whether something listens on an address.
taken() { (exec 3<>"$(tcp "$1")") 2>/dev/null; }
# The agent would try the first port again and again.
if taken "127.0.0.1:$port"; then
	echo "another program uses the port 127.0.0.1:$port; choose another one for the agent with AGENT_PORT=..." >&2
	exit 1
fi
if taken "$http"; then
	echo "another program uses the port $http; choose another one for the agent with AGENT_HTTP=127.0.0.1:..." >&2
	exit 1
fi

mkdir -p "$data"
# addresses.json is that of the run that has the data: one that is refused leaves it alone.
ready=$data/addresses.json.$$
server=
agent=
stop() { # the agent first, so that the server takes what it has
	trap 'kill -KILL $agent $server 2>/dev/null || true' INT TERM HUP # the second signal
	for child in $agent $server; do
		kill "$child" 2>/dev/null || true
		wait "$child" || true
	done
	rm -f "$ready"
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# Each in a process group of its own: Ctrl-C reaches only this script, which stops them in order.
set -m
"$bin/metaflow-server" standalone --data-dir "$data" --ready-file "$ready" "$@" &
server=$!
set +m
until [ -s "$ready" ]; do
	if ! kill -0 "$server" 2>/dev/null; then
		status=0
		wait "$server" || status=$?
		server=
		exit "$status"
	fi
	sleep 0.2
done
mv -f "$ready" "$data/addresses.json"
ready=$data/addresses.json
# address prints an address of the server.
address() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$ready"; }

api=$(address http)
ctl=("$bin/metaflow-ctl" -i "${api%:*}" --api-port "${api##*:}")
"${ctl[@]}" agent-group-config update default -f - <<EOF
inputs:
  integration:
    enabled: true
    listen_port: $port
  flow:
    enabled: true
EOF
# Like the server, the agent listens on loopback, unless METAFLOW_OTLP_INSECURE says otherwise.
[ -n "${METAFLOW_OTLP_INSECURE:-}" ] || export METAFLOW_OTLP_BIND_ADDRESS="${METAFLOW_OTLP_BIND_ADDRESS:-127.0.0.1}"
set -m
"$bin/metaflow-agent" run --server "$(address grpc)" --spool-dir "$data/agent" --http-listen "$http" &
agent=$!
set +m
# agent_ready prints what the agent's /ready answers.
agent_ready() (
	exec 3<>"$(tcp "$http")"
	printf 'GET /ready HTTP/1.0\r\n\r\n' >&3
	cat <&3
) 2>/dev/null
until [[ $(agent_ready) == *'"ready":true'* ]]; do
	kill -0 "$server" 2>/dev/null && kill -0 "$agent" 2>/dev/null || exit 1 # it has said why
	sleep 0.2
done
echo "
An agent runs beside the server:
  OTLP/HTTP          127.0.0.1:$port   (/v1/traces)
  HTTP               $http   (/ready, /metrics)
It does not watch connections over loopback. To see those of programs that call each other at localhost:
  echo 'inputs: {flow: {exclude_cidrs: []}}' | ${ctl[*]} agent-group-config update default -f -"

# Ends with the first of the two.
while kill -0 "$server" 2>/dev/null && kill -0 "$agent" 2>/dev/null; do
	sleep 0.5
done
exit 1
