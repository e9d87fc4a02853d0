// Package api is the REST API with which operators control agents: its types, the handler
// and the client.
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
// POST, PATCH and PUT of a configuration accept ?dry_run=true. Bodies are JSON, except
// for a configuration to set, which is YAML as read by pkg/agentconfig. Every error is a
// [Problem].
//
// The handler calls a [Service], which [Client] also implements: callers do not see
// whether there is a network in between.
package api
