DROP TABLE IF EXISTS {{.Database}}.agents_local{{.OnCluster}} SYNC;
DROP TABLE IF EXISTS {{.Database}}.services_local{{.OnCluster}} SYNC;
DROP TABLE IF EXISTS {{.Database}}.pods_local{{.OnCluster}} SYNC;
