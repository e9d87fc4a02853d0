CREATE TABLE IF NOT EXISTS stock (
    item_id INT PRIMARY KEY,
    quantity INT NOT NULL,
    CONSTRAINT never_below_zero CHECK (quantity >= 0)
);
-- Of item 13 there are three left.
MERGE INTO stock SELECT x, CASE x WHEN 13 THEN 3 ELSE 1000000 END FROM SYSTEM_RANGE(1, 20000);
