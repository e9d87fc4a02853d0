// Command netlab tries on real programs whether SQL names the edge whose
// network is in trouble, and the cause, and stays silent when nothing is wrong.
//
//	go run ./integration/netlab -run 'loss|clean'
//
// The programs are nobody's here: nginx, a Node service with express, a Flask
// service under gunicorn, a gRPC service in Python, PostgreSQL and Redis, with
// the automatic instrumentation of Node and Python. Each has a network
// namespace of its own, as a pod has, and a router between them is the node:
//
//	visitors ── nginx ── api (Node) ─┬─ orders (Flask) ─┬─ db (PostgreSQL)
//	                                 │                  ├─ cache (Redis)
//	                                 │                  └─ stock (Node)
//	                                 ├─ price (gRPC)
//	                                 └─ reports (Flask)
//
// The node runs metaflow-server in standalone mode and metaflow-agent, to which
// the instrumentation sends OTLP over HTTP. The lab drops, delays and refuses
// packets, and stops programs. Each case of the truth table says which edge and
// which cause the views must then name; everything else that they name is a
// false alarm. The exit status is 1 if a case is wrong in a way that is not
// marked as known. False alarms do not count where programs got no CPU for so
// long that a view had to report it.
//
// The lab runs in new namespaces for network, processes and mounts, so it
// leaves nothing behind, and its agent sees nothing else of the machine. It
// needs root, ip and nft, and what `make netlab-programs` fetches.
package main
