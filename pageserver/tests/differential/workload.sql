-- Everything that leaves a trace outside a single page. Run once on a fresh cluster, statement by statement.
\set ON_ERROR_STOP on
CREATE EXTENSION amcheck;
CREATE EXTENSION pg_visibility;

-- Heap in all its ways, HOT and not, TOAST, and a btree that splits, deduplicates and is vacuumed.
CREATE TABLE heap (id int PRIMARY KEY, k int, filler text, big text) WITH (fillfactor = 80);
CREATE INDEX heap_k ON heap (k);
INSERT INTO heap SELECT i, i % 100, repeat('x', i % 200), NULL FROM generate_series(1, 20000) i;
UPDATE heap SET filler = filler || 'y' WHERE id % 3 = 0;
UPDATE heap SET k = k + 1 WHERE id % 7 = 0;
DELETE FROM heap WHERE id % 5 = 0;
UPDATE heap SET big = (SELECT string_agg(md5((id * i)::text), '') FROM generate_series(1, 200) i) WHERE id % 1000 = 1;
VACUUM (FREEZE, ANALYZE) heap;
UPDATE heap SET filler = 'visible no more' WHERE id % 50 = 2;
SELECT count(*) FROM (SELECT 1 FROM heap WHERE id % 20 = 4 FOR UPDATE) locked_rows;
VACUUM heap;
DELETE FROM heap WHERE id > 15000;
VACUUM heap;
INSERT INTO heap SELECT i, i, 'again', NULL FROM generate_series(30001, 33000) i;
CREATE TABLE copied AS TABLE heap;
COPY (SELECT 1) TO STDOUT;
CREATE TABLE multi (a int, b text);
INSERT INTO multi SELECT i, repeat('m', 100) FROM generate_series(1, 5000) i;
VACUUM multi;
INSERT INTO multi VALUES (1, 'one more'), (2, 'and another');
CREATE TABLE upsert (id int PRIMARY KEY, n int);
INSERT INTO upsert SELECT i, 0 FROM generate_series(1, 500) i;
INSERT INTO upsert SELECT i, 0 FROM generate_series(250, 750) i ON CONFLICT (id) DO UPDATE SET n = upsert.n + 1;

-- Truncation to nothing, within a page of the visibility map, and rolled back.
CREATE TABLE cut (i int, filler text);
INSERT INTO cut SELECT i, repeat('c', 500) FROM generate_series(1, 20000) i;
VACUUM (FREEZE) cut;
DELETE FROM cut WHERE i > 3000;
VACUUM (TRUNCATE true) cut;
INSERT INTO cut SELECT i, repeat('d', 300) FROM generate_series(1, 4000) i;
CREATE TABLE truncated AS SELECT i FROM generate_series(1, 1000) i;
TRUNCATE truncated;
INSERT INTO truncated VALUES (1);
BEGIN;
TRUNCATE cut;
INSERT INTO cut VALUES (1, 'gone');
CREATE TABLE never (i int);
INSERT INTO never SELECT generate_series(1, 1000);
ROLLBACK;

-- Relations that come and go, rewrites, relation maps.
CREATE TABLE dropped AS SELECT i FROM generate_series(1, 1000) i;
DROP TABLE dropped;
CREATE TABLE rewritten (i int, t text);
INSERT INTO rewritten SELECT i, md5(i::text) FROM generate_series(1, 5000) i;
CREATE INDEX rewritten_i ON rewritten (i);
CLUSTER rewritten USING rewritten_i;
ALTER TABLE rewritten ALTER COLUMN i TYPE bigint;
VACUUM FULL rewritten;
REINDEX TABLE CONCURRENTLY rewritten;
VACUUM FULL pg_class;
VACUUM FULL pg_database;
REINDEX SYSTEM postgres;
CREATE UNLOGGED TABLE unlogged (i int PRIMARY KEY);
INSERT INTO unlogged SELECT generate_series(1, 1000);
CREATE UNLOGGED TABLE becomes_logged AS SELECT i FROM generate_series(1, 1000) i;
ALTER TABLE becomes_logged SET LOGGED;
CREATE TEMP TABLE temporary AS SELECT i FROM generate_series(1, 1000) i;
CREATE TABLE parted (i int) PARTITION BY RANGE (i);
SELECT format('CREATE TABLE parted_%s PARTITION OF parted FOR VALUES FROM (%s) TO (%s)', i, i * 10, i * 10 + 10)
FROM generate_series(0, 40) i \gexec
INSERT INTO parted SELECT i FROM generate_series(0, 409) i;
CREATE MATERIALIZED VIEW seen AS SELECT count(*) FROM heap;
REFRESH MATERIALIZED VIEW seen;
SELECT lo_from_bytea(0, decode(repeat('ab', 20000), 'hex'));

-- Sequences.
CREATE SEQUENCE counted CACHE 5;
SELECT count(nextval('counted')) FROM generate_series(1, 100);
CREATE TABLE numbered (id serial, t text);
INSERT INTO numbered (t) SELECT 'n' FROM generate_series(1, 100);
SELECT setval('counted', 1000);

-- Subtransactions, more than fit a commit record's cache, some rolled back.
CREATE TABLE nested (i int);
DO $$
BEGIN
    FOR i IN 1..300 LOOP
        BEGIN
            INSERT INTO nested VALUES (i);
            IF i % 3 = 0 THEN RAISE EXCEPTION 'undo'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END LOOP;
END $$;
BEGIN;
INSERT INTO nested VALUES (1000);
SAVEPOINT a;
INSERT INTO nested VALUES (1001);
ROLLBACK TO a;
INSERT INTO nested VALUES (1002);
ROLLBACK;

-- Enough transactions for a second page of pg_xact.
DO $$
BEGIN
    FOR i IN 1..34000 LOOP
        PERFORM txid_current();
        COMMIT;
    END LOOP;
END $$;

-- Multixacts, enough for a second page of offsets: a lock of the transaction and an update of its subtransaction.
CREATE TABLE locked (id int PRIMARY KEY, n int);
INSERT INTO locked SELECT i, 0 FROM generate_series(1, 2400) i;
CREATE TABLE locker (id int REFERENCES locked);
DO $$
BEGIN
    FOR i IN 1..2400 LOOP
        PERFORM 1 FROM locked WHERE id = i FOR KEY SHARE;
        BEGIN
            UPDATE locked SET n = n + 1 WHERE id = i;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
        IF i % 40 = 0 THEN COMMIT; END IF;
    END LOOP;
END $$;

-- Prepared transactions: committed, rolled back, and two left for later.
BEGIN; INSERT INTO nested VALUES (2000); DROP TABLE truncated; PREPARE TRANSACTION 'committed';
COMMIT PREPARED 'committed';
BEGIN; CREATE TABLE prepared_gone (i int); INSERT INTO prepared_gone VALUES (1); PREPARE TRANSACTION 'rolled back';
ROLLBACK PREPARED 'rolled back';
BEGIN; INSERT INTO nested VALUES (3000); SAVEPOINT s; INSERT INTO nested VALUES (3001); PREPARE TRANSACTION 'left 1';
BEGIN; CREATE TABLE prepared_kept AS SELECT i FROM generate_series(1, 100) i; PREPARE TRANSACTION 'left 2';

-- Every other access method: built, filled further, emptied, vacuumed, filled again.
CREATE INDEX heap_brin ON heap USING brin (id) WITH (pages_per_range = 4);
INSERT INTO heap SELECT i, i, repeat('brin', 20), NULL FROM generate_series(40001, 42000) i;
SELECT brin_summarize_new_values('heap_brin');
SELECT brin_desummarize_range('heap_brin', 0);
VACUUM heap;
CREATE TABLE kinds (id int, p point, r int4range, t text, a int[]);
INSERT INTO kinds SELECT i, point(i % 97, i % 89), int4range(i, i + i % 50), md5(i::text), ARRAY[i % 10, i % 100, i]
FROM generate_series(1, 3000) i;
CREATE INDEX kinds_hash ON kinds USING hash (id);
CREATE INDEX kinds_gist ON kinds USING gist (p);
CREATE INDEX kinds_gist_range ON kinds USING gist (r);
CREATE INDEX kinds_spgist ON kinds USING spgist (p);
CREATE INDEX kinds_spgist_text ON kinds USING spgist (t);
CREATE INDEX kinds_gin ON kinds USING gin (a) WITH (fastupdate = off);
CREATE INDEX kinds_gin_list ON kinds USING gin (a) WITH (fastupdate = on);
INSERT INTO kinds SELECT i, point(i % 193, i % 53), int4range(i % 700, i % 700 + i % 9), md5(i::text), ARRAY[i % 7, i % 1000, i]
FROM generate_series(3001, 9000) i;
DELETE FROM kinds WHERE id % 3 <> 1 OR id BETWEEN 4000 AND 6000;
VACUUM kinds;
INSERT INTO kinds SELECT i, point(i % 11, i % 13), int4range(i, i + 3), repeat('prefix', 3) || i, ARRAY[i % 3]
FROM generate_series(10001, 12000) i;
UPDATE kinds SET p = point(id % 7, id) WHERE id % 10 = 0;
SELECT gin_clean_pending_list('kinds_gin_list');
VACUUM kinds;

-- Databases by both strategies; one is dropped.
CREATE DATABASE by_log STRATEGY wal_log;
CREATE DATABASE by_file STRATEGY file_copy;
CREATE DATABASE short_lived STRATEGY file_copy TEMPLATE template0;
DROP DATABASE short_lived;
\connect by_file
CREATE TABLE here (i int);
INSERT INTO here SELECT generate_series(1, 1000);
VACUUM FULL pg_class;
\connect by_log
CREATE TABLE there (i int);
INSERT INTO there SELECT generate_series(1, 1000);
\connect postgres
CREATE DATABASE copy_of_copy TEMPLATE by_file STRATEGY file_copy;
CREATE ROLE somebody LOGIN;
ALTER DATABASE by_log SET work_mem = '8MB';
SELECT pg_logical_emit_message(true, 'differential', 'message');
SELECT pg_switch_wal();
SELECT txid_current();
CHECKPOINT;
INSERT INTO upsert VALUES (10000, 1);
