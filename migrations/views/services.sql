CREATE OR REPLACE VIEW {{.Database}}.services{{.OnCluster}}
AS SELECT
    cluster,
    ip,
    namespace,
    service,
    ports,
    endpoints,
    endpoint_count,
    valid_from,
    -- An address that a service no longer has is no longer reported.
    if(valid_to > seen, if(seen < now() - toIntervalHour(13), seen, valid_to), valid_to) AS valid_to,
    seen
FROM {{.Database}}.services_local FINAL;
