DO $$
BEGIN
    WHILE to_regclass('ready') IS NULL LOOP
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
    FOR round IN 1..2 LOOP
        FOR key IN 1..1200 LOOP
            BEGIN
                UPDATE rows_locked SET v = v + 1 WHERE id = key;
            EXCEPTION WHEN deadlock_detected THEN
                NULL;
            END;
            COMMIT;
        END LOOP;
    END LOOP;
END $$;
