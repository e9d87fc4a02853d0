DROP VIEW IF EXISTS {{.Database}}.agents{{.OnCluster}} SYNC;

DROP TABLE IF EXISTS {{.Database}}.agents_local{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.services{{.OnCluster}} SYNC;

DROP TABLE IF EXISTS {{.Database}}.services_local{{.OnCluster}} SYNC;

DROP VIEW IF EXISTS {{.Database}}.pods{{.OnCluster}} SYNC;

DROP TABLE IF EXISTS {{.Database}}.pods_local{{.OnCluster}} SYNC;
