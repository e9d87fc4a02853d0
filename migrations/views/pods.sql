CREATE OR REPLACE VIEW {{.Database}}.pods{{.OnCluster}}
AS SELECT
    cluster,
    ip,
    pod,
    uid,
    namespace,
    node,
    workload,
    workload_kind,
    host_network,
    valid_from,
    valid_to,
    seen
FROM {{.Database}}.pods_local FINAL;
