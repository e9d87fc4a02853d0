package com.metaflowys.demo.shop;

import java.util.Comparator;
import java.util.List;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.context.annotation.Profile;
import org.springframework.jdbc.core.simple.JdbcClient;
import org.springframework.jdbc.support.GeneratedKeyHolder;
import org.springframework.transaction.support.TransactionTemplate;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;

@RestController
@Profile("svc-order")
class OrderService {
    record Purchase(long id, int userId, long totalCents) {}

    private final JdbcClient db;
    private final TransactionTemplate transaction;
    private final RestClient items;
    private final RestClient stock;

    OrderService(
            JdbcClient db,
            TransactionTemplate transaction,
            RestClient.Builder http,
            @Value("${shop.svc-item}") String items,
            @Value("${shop.svc-stock}") String stock) {
        this.db = db;
        this.transaction = transaction;
        this.items = http.clone().baseUrl(items).build();
        this.stock = http.clone().baseUrl(stock).build();
    }

    @GetMapping("/orders")
    List<Purchase> orders(@RequestParam int userId) {
        return db.sql("SELECT id, user_id, total_cents FROM purchase WHERE user_id = ? ORDER BY id DESC LIMIT 20")
                .param(userId)
                .query(Purchase.class)
                .list();
    }

    /** Asks for the price of one item after the other: a waterfall shows what that costs. */
    @PostMapping("/orders")
    Purchase place(@RequestBody Order order) {
        long total = 0;
        for (Line line : order.lines()) {
            Item item = items.get().uri("/items/{id}", line.itemId()).retrieve().body(Item.class);
            total += (long) item.priceCents() * line.quantity();
        }
        // Lock rows in one order to avoid deadlocks.
        List<Line> sorted = order.lines().stream().sorted(Comparator.comparing(Line::itemId)).toList();
        stock.post().uri("/reservations").body(sorted).retrieve().toBodilessEntity();
        return store(order, total);
    }

    private Purchase store(Order order, long total) {
        return transaction.execute(status -> {
            var keys = new GeneratedKeyHolder();
            db.sql("INSERT INTO purchase (user_id, total_cents) VALUES (?, ?)").params(order.userId(), total).update(keys, "id");
            long id = keys.getKeyAs(Long.class);
            for (Line line : order.lines()) {
                db.sql("INSERT INTO purchase_line (purchase_id, item_id, quantity) VALUES (?, ?, ?)")
                        .params(id, line.itemId(), line.quantity())
                        .update();
            }
            return new Purchase(id, order.userId(), total);
        });
    }
}
