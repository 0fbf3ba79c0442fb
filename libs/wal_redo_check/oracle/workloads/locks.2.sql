DO $$
BEGIN
    WHILE to_regclass('ready') IS NULL LOOP
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
    FOR round IN 1..4 LOOP
        FOR key IN 1..1200 LOOP
            PERFORM 1 FROM rows_locked WHERE id = key FOR SHARE;
            IF key % 60 = 0 THEN
                COMMIT;
            END IF;
        END LOOP;
        COMMIT;
    END LOOP;
END $$;
