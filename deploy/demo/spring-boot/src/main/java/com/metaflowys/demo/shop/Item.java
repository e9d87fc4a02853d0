package com.metaflowys.demo.shop;

/** Something that is for sale. */
record Item(int id, String name, int priceCents) {}
