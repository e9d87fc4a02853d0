package com.metaflowys.demo.shop;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.context.annotation.Profile;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestClient;

/** What browsers talk to. It keeps nothing and asks the services. */
@RestController
@Profile("web-shop")
class WebShop {
    private final RestClient users;
    private final RestClient items;
    private final RestClient stock;
    private final RestClient orders;

    WebShop(
            RestClient.Builder http,
            @Value("${shop.svc-user}") String users,
            @Value("${shop.svc-item}") String items,
            @Value("${shop.svc-stock}") String stock,
            @Value("${shop.svc-order}") String orders) {
        this.users = http.clone().baseUrl(users).build();
        this.items = http.clone().baseUrl(items).build();
        this.stock = http.clone().baseUrl(stock).build();
        this.orders = http.clone().baseUrl(orders).build();
    }

    @GetMapping("/")
    List<?> home() {
        return items.get().uri("/items").retrieve().body(List.class);
    }

    @GetMapping("/search")
    List<?> search(@RequestParam String text) {
        return items.get().uri("/search?text={text}", text).retrieve().body(List.class);
    }

    @GetMapping("/items/{id}")
    Map<String, Object> item(@PathVariable int id) {
        Map<String, Object> page = new HashMap<>();
        page.put("item", items.get().uri("/items/{id}", id).retrieve().body(Map.class));
        page.put("stock", stock.get().uri("/stock/{id}", id).retrieve().body(Map.class));
        return page;
    }

    @PostMapping("/checkout")
    Map<?, ?> checkout(@RequestBody Order order) {
        users.get().uri("/users/{id}", order.userId()).retrieve().toBodilessEntity();
        return orders.post().uri("/orders").body(order).retrieve().body(Map.class);
    }

    @GetMapping("/account/{userId}")
    Map<String, Object> account(@PathVariable int userId) {
        Map<String, Object> page = new HashMap<>();
        page.put("user", users.get().uri("/users/{id}", userId).retrieve().body(Map.class));
        page.put("orders", orders.get().uri("/orders?userId={id}", userId).retrieve().body(List.class));
        return page;
    }
}
