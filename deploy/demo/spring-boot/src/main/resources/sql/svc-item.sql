CREATE TABLE IF NOT EXISTS item (
    id INT PRIMARY KEY,
    name VARCHAR(80) NOT NULL,
    description VARCHAR(400) NOT NULL,
    price_cents INT NOT NULL
);
MERGE INTO item
SELECT x,
       ARRAY['Red', 'Green', 'Blue', 'Black', 'White'][MOD(x, 5) + 1] || ' ' || ARRAY['lamp', 'chair', 'table', 'vase', 'clock', 'shelf', 'mirror'][MOD(x, 7) + 1],
       'Number ' || x || ' of our catalogue, made by hand of ' || ARRAY['oak', 'glass', 'steel'][MOD(x, 3) + 1] || ' for people who like it plain',
       500 + MOD(x * 7919, 20000)
FROM SYSTEM_RANGE(1, 20000);
