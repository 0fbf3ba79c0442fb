-- Multixacts: rows locked and updated by sessions side by side (locks.sql, locks.2.sql, locks.3.sql).
CREATE TABLE IF NOT EXISTS rows_locked (id int PRIMARY KEY, v int);
INSERT INTO rows_locked SELECT i, 0 FROM generate_series(1, 1200) i ON CONFLICT DO NOTHING;
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
