CREATE DATABASE IF NOT EXISTS {{.Database}}{{.OnCluster}};

-- One row for each run of a migration in either direction; the newest row of a version
-- shows whether it is applied.
CREATE TABLE IF NOT EXISTS {{.Database}}.schema_migrations{{.OnCluster}}
(
    version UInt32,
    name String,
    applied Bool,
    at DateTime64(9, 'UTC') DEFAULT now64(9)
)
ENGINE = {{engineShared "ReplacingMergeTree" "at"}}
ORDER BY version;
