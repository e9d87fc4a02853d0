package com.metaflowys.demo.shop;

import java.util.List;
import org.springframework.context.annotation.Profile;
import org.springframework.dao.DataIntegrityViolationException;
import org.springframework.http.HttpStatus;
import org.springframework.http.ProblemDetail;
import org.springframework.jdbc.core.simple.JdbcClient;
import org.springframework.transaction.annotation.Transactional;
import org.springframework.web.bind.annotation.ExceptionHandler;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;

@RestController
@Profile("svc-stock")
class StockService {
    private final JdbcClient db;

    StockService(JdbcClient db) {
        this.db = db;
    }

    @GetMapping("/stock/{itemId}")
    Line stock(@PathVariable int itemId) {
        return db.sql("SELECT item_id, quantity FROM stock WHERE item_id = ?").param(itemId).query(Line.class).single();
    }

    /** Takes all lines off the stock, or none. The database refuses to go below zero. */
    @PostMapping("/reservations")
    @Transactional
    public void reserve(@RequestBody List<Line> lines) {
        for (Line line : lines) {
            db.sql("UPDATE stock SET quantity = quantity - ? WHERE item_id = ?").params(line.quantity(), line.itemId()).update();
        }
    }

    @ExceptionHandler
    ProblemDetail soldOut(DataIntegrityViolationException refused) {
        return ProblemDetail.forStatusAndDetail(HttpStatus.CONFLICT, "sold out");
    }
}
