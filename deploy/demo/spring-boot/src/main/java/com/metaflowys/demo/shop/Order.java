package com.metaflowys.demo.shop;

import java.util.List;

/** What a customer wants to buy. */
record Order(int userId, List<Line> lines) {}
