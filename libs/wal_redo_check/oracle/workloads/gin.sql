-- GIN: pending list, posting trees with splits and deletion of pages, entry tree, vacuum.
SET synchronous_commit = off;
CREATE TABLE g (id int, words int[]) WITH (autovacuum_enabled = off);
CREATE INDEX g_fast ON g USING gin (words) WITH (fastupdate = on, gin_pending_list_limit = 64);
CREATE INDEX g_slow ON g USING gin (words) WITH (fastupdate = off);
INSERT INTO g SELECT i, ARRAY[i % 3, i % 100 + 10, i] FROM generate_series(1, 12000) i;
SELECT gin_clean_pending_list('g_fast');
-- Removing scattered rows shrinks segments; removing a range empties posting tree pages.
DELETE FROM g WHERE id % 7 = 0;
VACUUM g;
INSERT INTO g SELECT i, ARRAY[i % 3, i % 100 + 10] FROM generate_series(1, 3000) i;
VACUUM g;
DELETE FROM g WHERE id BETWEEN 2000 AND 11500;
VACUUM g;
SELECT txid_current();
VACUUM g;
INSERT INTO g SELECT i, ARRAY[i % 3, 1] FROM generate_series(1, 20000) i;
VACUUM g;
DELETE FROM g;
VACUUM g;
INSERT INTO g SELECT i, ARRAY[i % 2] FROM generate_series(1, 50000) i;
DELETE FROM g WHERE id < 45000;
VACUUM g;
CREATE TABLE t (body tsvector) WITH (autovacuum_enabled = off);
INSERT INTO t SELECT to_tsvector('simple', md5(i::text) || ' ' || md5((i % 97)::text)) FROM generate_series(1, 4000) i;
CREATE INDEX t_body ON t USING gin (body);
UPDATE t SET body = body || 'common'::tsvector;
VACUUM t;
