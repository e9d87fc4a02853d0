CREATE DATABASE IF NOT EXISTS {{.Database}}{{.OnCluster}};

-- One row for each time that a migration was run, in either direction; the
-- newest of a version says whether it is in force.
CREATE TABLE IF NOT EXISTS {{.Database}}.schema_migrations{{.OnCluster}}
(
    version UInt32,
    name String,
    applied Bool,
    at DateTime64(9, 'UTC') DEFAULT now64(9)
)
ENGINE = {{engineShared "ReplacingMergeTree" "at"}}
ORDER BY version;
