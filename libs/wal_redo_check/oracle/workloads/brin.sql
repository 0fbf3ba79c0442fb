-- BRIN: summarising, updates that stay and that move, growth of the range map over tuples, desummarising.
SET synchronous_commit = off;
CREATE TABLE b (id int, body text) WITH (autovacuum_enabled = off, fillfactor = 10);
CREATE INDEX b_one ON b USING brin (id, body) WITH (pages_per_range = 1);
INSERT INTO b SELECT i, repeat('z', 500) FROM generate_series(1, 2500) i;
SELECT brin_summarize_new_values('b_one');
-- Longer summaries do not fit where the old ones were.
UPDATE b SET body = chr(97 + id % 26) || repeat(md5(id::text), 12) WHERE id % 3 = 0;
UPDATE b SET body = repeat('q', id % 700) WHERE id % 5 = 0;
DO $$
BEGIN
    FOR page IN 0..400 BY 3 LOOP
        PERFORM brin_desummarize_range('b_one', page);
    END LOOP;
END $$;
SELECT brin_summarize_new_values('b_one');
CREATE TABLE bm (id int, at timestamptz);
CREATE INDEX bm_multi ON bm USING brin (at timestamptz_minmax_multi_ops) WITH (pages_per_range = 2, autosummarize = on);
CREATE INDEX bm_bloom ON bm USING brin (id int4_bloom_ops) WITH (pages_per_range = 4);
INSERT INTO bm SELECT i, now() + (i * 7919 % 10000) * interval '1 minute' FROM generate_series(1, 30000) i;
VACUUM bm;
INSERT INTO bm SELECT i, now() - (i % 997) * interval '1 day' FROM generate_series(1, 3000) i;
