// Package api is the REST API that operators control agents with: its types, the
// handler that serves it and the client that asks.
//
//	GET    /v1/agents                            all agents
//	GET    /v1/agents/{agent}                    one, by id or name
//	DELETE /v1/agents/{agent}                    forgets one that is not there any more
//	GET    /v1/agent-groups                      all groups
//	POST   /v1/agent-groups                      makes one
//	DELETE /v1/agent-groups/{group}              by id or name
//	GET    /v1/agent-group-configs               the configurations of all groups
//	GET    /v1/agent-group-configs/{group}       of one
//	POST   /v1/agent-group-configs/{group}       sets keys of a group that has none set
//	PATCH  /v1/agent-group-configs/{group}       sets keys and leaves the others
//	PUT    /v1/agent-group-configs/{group}       sets keys and no others
//	DELETE /v1/agent-group-configs/{group}       sets none
//
// POST, PATCH and PUT of a configuration take ?dry_run=true. Bodies are JSON, except that a configuration to be
// set is YAML as pkg/agentconfig reads it. Every error is a [Problem], whatever it is about.
//
// What the answers are is the business of a [Service], which the handler asks and which
// [Client] is as well: a test or a program does not see whether there is a network between.
package api
