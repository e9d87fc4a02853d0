"""orders: a Flask service under gunicorn. It asks PostgreSQL, Redis and stock.

The query says what a request does:
  parts   what it asks, of db, cache and stock; all by default
  sleep   ms that its own code takes
  dbsleep ms that its query takes in PostgreSQL
  size    bytes of its answer and of those of its parts
  stock   host and port at which it finds stock
  pool    whether it keeps its connection to stock
"""

import threading
import time

import flask
import psycopg2
import redis
import requests

app = flask.Flask(__name__)
cache = redis.Redis(host="cache", socket_timeout=15)
thread = threading.local()


def connection():
    if getattr(thread, "db", None) is None or thread.db.closed:
        thread.db = psycopg2.connect(host="db", user="shop", dbname="postgres", connect_timeout=15)
        thread.db.autocommit = True
    return thread.db


def session():
    if getattr(thread, "session", None) is None:
        thread.session = requests.Session()
    return thread.session


@app.get("/orders/<int:order>")
def get(order):
    query = flask.request.args
    time.sleep(query.get("sleep", 0, int) / 1000)
    size = query.get("size", 200, int)
    parts = query.get("parts", "db,cache,stock").split(",")
    if "db" in parts:
        with connection().cursor() as cursor:
            cursor.execute("SELECT repeat('x', %s), pg_sleep(%s)", (size, query.get("dbsleep", 0, int) / 1000))
            cursor.fetchone()
    if "cache" in parts:
        cache.set("order", "x" * size)
        cache.get("order")
    if "stock" in parts:
        asks = session() if "pool" in query else requests
        asks.get("http://%s/stock/%d" % (query.get("stock", "stock:3000"), order), params={"size": size}, timeout=15).raise_for_status()
    return "x" * size


@app.get("/report")
def report():
    return "ok"


@app.get("/health")
def health():
    return "ok"
