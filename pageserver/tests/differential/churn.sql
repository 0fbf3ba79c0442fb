-- For pgbench, several clients at once: locks shared between transactions make multixacts, keys collide, pages fill.
\set id random(1, 400)
\set other random(1, 400)
BEGIN;
SELECT n FROM locked WHERE id = :id FOR KEY SHARE;
INSERT INTO locker VALUES (:id);
SELECT n FROM locked WHERE id = :id FOR SHARE;
SAVEPOINT s;
INSERT INTO upsert VALUES (:other, 1) ON CONFLICT (id) DO UPDATE SET n = upsert.n + 1;
RELEASE SAVEPOINT s;
INSERT INTO heap VALUES (nextval('counted') + 100000, :other, 'churn', NULL);
DELETE FROM heap WHERE id = :id;
COMMIT;
