package com.metaflowys.demo.shop;

import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.List;
import org.h2.tools.Server;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.context.annotation.Profile;

/** The database: H2 behind a TCP port, with one database for each service that keeps something. */
@Configuration
@Profile("db-demo")
class DatabaseServer {
    private static final List<String> DATABASES = List.of("svc-user", "svc-item", "svc-stock", "svc-order");

    /** Makes the databases here, because the port lets nobody make one. An empty address means all that the host has. */
    @Bean(initMethod = "start", destroyMethod = "stop")
    Server server(
            @Value("${shop.db-directory}") Path directory,
            @Value("${shop.db-address:}") String address,
            @Value("${shop.db-port}") String port,
            @Value("${shop.db-password}") String password)
            throws SQLException {
        if (!address.isEmpty()) {
            System.setProperty("h2.bindAddress", address);
        }
        for (String name : DATABASES) {
            String url = "jdbc:h2:file:" + directory.toAbsolutePath().resolve(name);
            try (Connection made = DriverManager.getConnection(url, "sa", password)) {
                made.isValid(0);
            }
        }
        return Server.createTcpServer(
                "-tcpPort", port, "-tcpAllowOthers", "-ifExists", "-baseDir", directory.toAbsolutePath().toString());
    }
}
