-- Hash: splits, overflow pages, bitmap, squeeze, cleanup after splits, dead tuples on insert.
SET synchronous_commit = off;
CREATE TABLE h (k int, v int) WITH (autovacuum_enabled = off);
CREATE INDEX h_k ON h USING hash (k) WITH (fillfactor = 75);
INSERT INTO h SELECT i, i FROM generate_series(1, 30000) i;
-- One key many times: long overflow chains.
INSERT INTO h SELECT 7, i FROM generate_series(1, 8000) i;
DELETE FROM h WHERE k = 7 AND v % 4 <> 0;
VACUUM h;
DELETE FROM h WHERE k % 3 = 0;
VACUUM h;
INSERT INTO h SELECT i % 500, i FROM generate_series(1, 40000) i;
DELETE FROM h WHERE v % 5 <> 1;
VACUUM h;
INSERT INTO h SELECT 11, i FROM generate_series(1, 5000) i;
DELETE FROM h;
VACUUM h;
-- Tuples found dead by a scan make room for new ones on their page.
CREATE TABLE hk (k int, v int) WITH (autovacuum_enabled = off);
CREATE INDEX hk_k ON hk USING hash (k);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
DO $$
BEGIN
    FOR round IN 1..40 LOOP
        INSERT INTO hk SELECT i % 5, round FROM generate_series(1, 150) i;
        COMMIT;
        DELETE FROM hk WHERE v = round;
        COMMIT;
        FOR key IN 0..4 LOOP
            PERFORM count(v) FROM hk WHERE k = key;
        END LOOP;
    END LOOP;
END $$;
CREATE INDEX h_built ON h USING hash (v);
CREATE TABLE h_large AS SELECT i AS k FROM generate_series(1, 60000) i;
CREATE INDEX h_large_k ON h_large USING hash (k);
CREATE UNLOGGED TABLE h_unlogged (k int);
CREATE INDEX h_unlogged_k ON h_unlogged USING hash (k);
INSERT INTO h_unlogged SELECT i FROM generate_series(1, 1000) i;
ALTER TABLE h_unlogged SET LOGGED;
