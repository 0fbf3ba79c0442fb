-- Records of all the rest: two-phase, subtransactions, messages, origins, backup, restore points, generic WAL, databases.
CREATE EXTENSION bloom;
CREATE TABLE bl (a int, b int, c int);
CREATE INDEX bl_all ON bl USING bloom (a, b, c);
INSERT INTO bl SELECT i, i * 2, i % 17 FROM generate_series(1, 20000) i;
DELETE FROM bl WHERE a % 3 = 0;
VACUUM bl;
INSERT INTO bl SELECT i, i, i FROM generate_series(1, 3000) i;

CREATE TABLE two (id int);
BEGIN;
INSERT INTO two SELECT generate_series(1, 100);
PREPARE TRANSACTION 'kept';
BEGIN;
INSERT INTO two SELECT generate_series(1, 100);
CREATE TABLE never (id int);
PREPARE TRANSACTION 'dropped';
COMMIT PREPARED 'kept';
ROLLBACK PREPARED 'dropped';
BEGIN;
DO $$
BEGIN
    FOR i IN 1..200 LOOP
        BEGIN
            INSERT INTO two VALUES (i);
        EXCEPTION WHEN others THEN
            NULL;
        END;
    END LOOP;
END $$;
ROLLBACK;
SELECT pg_logical_emit_message(true, 'prefix', 'message');
SELECT pg_logical_emit_message(false, 'prefix', 'message');
SELECT pg_create_restore_point('here');
SELECT pg_backup_start('label', true);
SELECT 1 FROM pg_backup_stop();
SELECT pg_switch_wal() IS NOT NULL;
SELECT pg_replication_origin_create('origin');
SELECT pg_replication_origin_session_setup('origin');
SELECT pg_replication_origin_xact_setup('0/1234', now());
INSERT INTO two VALUES (1);
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_advance('origin', '0/5678');
SELECT pg_replication_origin_drop('origin');
CREATE DATABASE copied TEMPLATE template0 STRATEGY file_copy;
ALTER SYSTEM SET full_page_writes = on;
SELECT pg_reload_conf();
SELECT pg_sleep(1);
CHECKPOINT;
ALTER SYSTEM SET full_page_writes = off;
SELECT pg_reload_conf();
SELECT pg_sleep(1);
CHECKPOINT;
ALTER SYSTEM RESET full_page_writes;
SELECT pg_reload_conf();
DROP DATABASE copied;

SELECT current_setting('wal_level') = 'logical' AS logical \gset
\if :logical
-- A slot that needs old catalog rows makes rewrites of catalogs log where rows went.
SELECT slot_name FROM pg_create_logical_replication_slot('catalogs', 'test_decoding');
CREATE TABLE decoded (id int PRIMARY KEY, v text);
ALTER TABLE decoded REPLICA IDENTITY FULL;
INSERT INTO decoded SELECT i, 'v' FROM generate_series(1, 100) i;
BEGIN;
ALTER TABLE decoded ADD COLUMN more int;
UPDATE decoded SET more = id;
COMMIT;
VACUUM FULL pg_class;
VACUUM FULL pg_attribute;
TRUNCATE decoded;
SELECT pg_drop_replication_slot('catalogs');
\endif
