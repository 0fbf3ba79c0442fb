-- GiST: builds, inner and root splits, deletion of empty pages and their reuse, dead tuples on insert.
SET synchronous_commit = off;
CREATE TABLE p (id int, at point) WITH (autovacuum_enabled = off);
CREATE INDEX p_at ON p USING gist (at);
INSERT INTO p SELECT i, point(i % 300, i / 300) FROM generate_series(1, 25000) i;
DELETE FROM p WHERE id % 2 = 0;
VACUUM p;
DELETE FROM p WHERE id BETWEEN 3000 AND 22000;
VACUUM p;
SELECT txid_current();
VACUUM p;
INSERT INTO p SELECT i, point(i % 300, i / 300) FROM generate_series(1, 15000) i;
DELETE FROM p;
VACUUM p;
SELECT txid_current();
INSERT INTO p SELECT i, point(i % 50, i / 50) FROM generate_series(1, 15000) i;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
CREATE TABLE pk (id int, at box) WITH (autovacuum_enabled = off);
CREATE INDEX pk_at ON pk USING gist (at);
DO $$
BEGIN
    FOR round IN 1..40 LOOP
        INSERT INTO pk SELECT round, box(point(i, i), point(i + 1, i + 1)) FROM generate_series(1, 60) i;
        COMMIT;
        DELETE FROM pk WHERE id = round;
        COMMIT;
        PERFORM count(id) FROM pk WHERE at && box(point(0, 0), point(100, 100));
    END LOOP;
END $$;
CREATE INDEX p_sorted ON p USING gist (at);
CREATE INDEX p_buffered ON p USING gist (at) WITH (buffering = on);
CREATE TABLE r (during int4range, EXCLUDE USING gist (during WITH &&));
INSERT INTO r SELECT int4range(i * 2, i * 2 + 1) FROM generate_series(1, 5000) i;
