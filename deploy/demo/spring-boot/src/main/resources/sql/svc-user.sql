CREATE TABLE IF NOT EXISTS customer (
    id INT PRIMARY KEY,
    name VARCHAR(80) NOT NULL,
    -- Unknown for customers of the old shop.
    city VARCHAR(80)
);
MERGE INTO customer
SELECT x, 'Customer ' || x, CASE WHEN MOD(x, 50) <> 7 THEN ARRAY['Delft', 'Porto', 'Graz', 'Turku'][MOD(x, 4) + 1] END
FROM SYSTEM_RANGE(1, 100);
