-- B-tree: splits in the middle, posting lists, page deletion of subtrees, metapage changes, reuse of pages.
SET synchronous_commit = off;
CREATE TABLE wide (id int, pad text COLLATE "C");
ALTER TABLE wide SET (autovacuum_enabled = off);
INSERT INTO wide SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 6000) i;
CREATE INDEX wide_pad ON wide (pad);
INSERT INTO wide SELECT i, repeat(md5(i::text), 20) FROM generate_series(6001, 9000) i;
-- Deleting all of it deletes leaves, inner pages, and moves the fast root.
DELETE FROM wide WHERE id % 50 <> 0;
VACUUM wide;
DELETE FROM wide;
VACUUM wide;
SELECT txid_current();
VACUUM wide;
-- Deleted pages are used again once no transaction can see them.
INSERT INTO wide SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 4000) i;
DELETE FROM wide;
VACUUM wide;
INSERT INTO wide SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 4000) i;

CREATE TABLE few_keys (k int, filler int) WITH (autovacuum_enabled = off);
CREATE INDEX few_keys_k ON few_keys (k);
INSERT INTO few_keys SELECT i % 10, i FROM generate_series(1, 20000) i;
DELETE FROM few_keys WHERE filler % 3 = 0;
VACUUM few_keys;
-- New rows go to freed places in the heap, whose tids fall within posting lists.
INSERT INTO few_keys SELECT i % 10, i FROM generate_series(1, 6000) i;
DELETE FROM few_keys WHERE filler % 7 = 0;
VACUUM few_keys;
INSERT INTO few_keys SELECT i % 10, i FROM generate_series(1, 3000) i;

-- Version churn: deletion of tuples known to be dead, from below.
CREATE TABLE churn (id int PRIMARY KEY, v int, w int) WITH (autovacuum_enabled = off, fillfactor = 50);
CREATE INDEX churn_v ON churn (v);
CREATE INDEX churn_w ON churn (w);
INSERT INTO churn SELECT i, i, i FROM generate_series(1, 400) i;
DO $$
BEGIN
    FOR round IN 1..30 LOOP
        UPDATE churn SET v = v + 1000;
        COMMIT;
        PERFORM count(*) FROM churn WHERE w BETWEEN 0 AND 100000;
    END LOOP;
END $$;
CREATE TABLE unique_churn (k int UNIQUE, v int) WITH (autovacuum_enabled = off);
DO $$
BEGIN
    FOR round IN 1..300 LOOP
        DELETE FROM unique_churn;
        INSERT INTO unique_churn SELECT i, round FROM generate_series(1, 20) i;
        COMMIT;
    END LOOP;
END $$;
REINDEX TABLE churn;
