CREATE OR REPLACE VIEW {{.Database}}.agents{{.OnCluster}}
AS SELECT
    agent_id,
    name,
    host,
    addresses,
    agent_version AS version,
    cluster,
    group_id,
    revision,
    exceptions,
    started,
    seen,
    connected AND seen > now() - toIntervalMinute(1) AS alive
FROM {{.Database}}.agents_local FINAL
WHERE NOT deleted;
