package com.metaflowys.demo.shop;

import java.util.Locale;
import org.springframework.context.annotation.Profile;
import org.springframework.jdbc.core.simple.JdbcClient;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;

@RestController
@Profile("svc-user")
class UserService {
    record User(int id, String name, String city) {}

    private final JdbcClient db;

    UserService(JdbcClient db) {
        this.db = db;
    }

    /** Has a fault for the traces to find: nobody thought of customers without a city. */
    @GetMapping("/users/{id}")
    User user(@PathVariable int id) {
        User found = db.sql("SELECT id, name, city FROM customer WHERE id = ?").param(id).query(User.class).single();
        return new User(found.id(), found.name(), found.city().toUpperCase(Locale.ROOT));
    }
}
