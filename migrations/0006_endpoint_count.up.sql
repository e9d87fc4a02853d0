-- The number of pods behind a service; the column endpoints has a thousand of them at
-- most.
{{addColumn "services" "endpoint_count UInt32 CODEC(T64, ZSTD(1)) AFTER endpoints"}};
