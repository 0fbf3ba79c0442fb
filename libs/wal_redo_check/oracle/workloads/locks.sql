-- Multixacts: rows locked and updated by sessions side by side (locks.sql, locks.2.sql, locks.3.sql).
CREATE TABLE IF NOT EXISTS rows_locked (id int PRIMARY KEY, v int);
INSERT INTO rows_locked SELECT i, 0 FROM generate_series(1, 1200) i ON CONFLICT DO NOTHING;
-- A row locked by a transaction and again by its subtransaction has a multixact: enough of them for a second page.
CREATE TABLE many (id int PRIMARY KEY);
INSERT INTO many SELECT generate_series(1, 2500);
DO $$
BEGIN
    FOR key IN 1..2500 LOOP
        PERFORM 1 FROM many WHERE id = key FOR KEY SHARE;
        BEGIN
            PERFORM 1 FROM many WHERE id = key FOR NO KEY UPDATE;
        EXCEPTION WHEN others THEN
            RAISE;
        END;
    END LOOP;
END $$;
CREATE TABLE ready ();
DO $$
BEGIN
    FOR round IN 1..4 LOOP
        FOR key IN 1..1200 LOOP
            PERFORM 1 FROM rows_locked WHERE id = key FOR KEY SHARE;
            IF key % 60 = 0 THEN
                COMMIT;
            END IF;
        END LOOP;
        COMMIT;
    END LOOP;
END $$;
VACUUM (FREEZE) rows_locked;
