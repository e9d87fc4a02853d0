package com.metaflowys.demo.shop;

import java.util.List;
import java.util.Locale;
import org.springframework.context.annotation.Profile;
import org.springframework.jdbc.core.simple.JdbcClient;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;

@RestController
@Profile("svc-item")
class ItemService {
    private final JdbcClient db;

    ItemService(JdbcClient db) {
        this.db = db;
    }

    @GetMapping("/items")
    List<Item> featured() {
        return db.sql("SELECT id, name, price_cents FROM item WHERE id <= 12 ORDER BY id").query(Item.class).list();
    }

    @GetMapping("/items/{id}")
    Item item(@PathVariable int id) {
        return db.sql("SELECT id, name, price_cents FROM item WHERE id = ?").param(id).query(Item.class).single();
    }

    /** Reads the whole table: no index helps a pattern that begins with a wildcard. */
    @GetMapping("/search")
    List<Item> search(@RequestParam String text) {
        return db.sql("SELECT id, name, price_cents FROM item WHERE LOWER(description) LIKE ? ORDER BY price_cents, id LIMIT 10")
                .param("%" + text.toLowerCase(Locale.ROOT) + "%")
                .query(Item.class)
                .list();
    }
}
