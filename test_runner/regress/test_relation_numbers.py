"""OIDs and relation numbers after their counter has wrapped around: one that is in use is never given again."""

from fixtures.neon_env import Endpoint, NeonEnvBuilder

LAST_OID = 4294967295
FIRST_NORMAL_OID = 16384


def start(builder: NeonEnvBuilder) -> Endpoint:
    main = builder.start().endpoint("main").set(autovacuum="off").start()
    main.sql("CREATE EXTENSION neon_test_utils")
    return main


def relation_number(main: Endpoint, table: str) -> int:
    return main.value(f"SELECT pg_relation_filenode('{table}')")


def test_counter_wraps_around(neon_env_builder: NeonEnvBuilder):
    main = start(neon_env_builder)
    main.sql("CREATE TABLE first AS SELECT 1 i")
    main.sql(f"SELECT set_next_oid({LAST_OID - 5})")
    for n in range(20):
        main.sql(f"CREATE TABLE t{n} (i serial PRIMARY KEY, v text)", f"INSERT INTO t{n} (v) VALUES ('{n}')")
    numbers = [relation_number(main, f"t{n}") for n in range(20)]
    assert numbers[0] > LAST_OID - 6 and FIRST_NORMAL_OID <= numbers[-1] < FIRST_NORMAL_OID + 200
    assert len(set(numbers)) == 20 and relation_number(main, "first") not in numbers
    main.restart()
    main.sql("CREATE TABLE later (i int)")
    assert FIRST_NORMAL_OID <= relation_number(main, "later") < FIRST_NORMAL_OID + 20000
    assert [main.value(f"SELECT v FROM t{n}") for n in range(20)] == [str(n) for n in range(20)]
    assert main.value("SELECT i FROM first") == 1


def test_numbers_in_use_are_skipped(neon_env_builder: NeonEnvBuilder):
    """Of the relations that are in the way the server knows nothing but what the pageserver tells: OIDs in pg_class differ."""
    main = start(neon_env_builder)
    main.sql("CREATE TABLE gone (i int)")
    dropped = relation_number(main, "gone")
    for n in range(5):
        main.sql(f"CREATE TABLE t{n} AS SELECT {n} i")
        # A new relation number, which is not its OID.
        main.sql(f"TRUNCATE t{n}", f"INSERT INTO t{n} VALUES ({n})")
    main.sql("DROP TABLE gone")
    taken = [relation_number(main, f"t{n}") for n in range(5)]
    for _ in range(2):
        main.sql(f"SELECT set_next_oid({taken[0]})", "CREATE TABLE n1 AS SELECT 'new'::text v")
        main.sql("CREATE UNLOGGED TABLE u1 AS SELECT 'new'::text v", f"SELECT set_next_oid({taken[0]})")
        main.sql("TRUNCATE n1", "INSERT INTO n1 VALUES ('newer')", "REINDEX TABLE pg_class")
        new = [relation_number(main, name) for name in ("n1", "u1", "pg_class_oid_index")]
        assert not set(new) & set(taken), "in use"
        assert [main.value(f"SELECT i FROM t{n}") for n in range(5)] == list(range(5))
        assert main.sql("SELECT n1.v, u1.v FROM n1, u1") == [("newer", "new")]
        # The number of a relation that was dropped is free.
        main.sql(f"SELECT set_next_oid({dropped})", "CREATE TABLE again AS SELECT 'again'::text v")
        assert relation_number(main, "again") == dropped and main.value("SELECT v FROM again") == "again"
        main.sql("DROP TABLE n1, u1, again")
        main.restart()
