package com.metaflowys.demo.shop;

/** So many of an item. */
record Line(int itemId, int quantity) {}
