\echo Use "CREATE EXTENSION neon" to load this file. \quit

CREATE FUNCTION pg_cluster_size()
RETURNS bigint
AS 'MODULE_PATHNAME', 'pg_cluster_size'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE FUNCTION backpressure_lsns(
    OUT received_lsn pg_lsn,
    OUT disk_consistent_lsn pg_lsn,
    OUT remote_consistent_lsn pg_lsn
)
RETURNS record
AS 'MODULE_PATHNAME', 'backpressure_lsns'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE FUNCTION backpressure_throttling_time()
RETURNS bigint
AS 'MODULE_PATHNAME', 'backpressure_throttling_time'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE FUNCTION local_cache_pages(
    OUT slot bigint,
    OUT relfilenode oid,
    OUT reltablespace oid,
    OUT reldatabase oid,
    OUT relforknumber smallint,
    OUT relblocknumber bigint,
    OUT accesses bigint
)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'local_cache_pages'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE VIEW local_cache AS SELECT * FROM local_cache_pages();

CREATE FUNCTION local_cache_statistics(
    OUT hits bigint,
    OUT misses bigint,
    OUT stores bigint,
    OUT evictions bigint,
    OUT used_bytes bigint,
    OUT limit_bytes bigint
)
RETURNS record
AS 'MODULE_PATHNAME', 'local_cache_statistics'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE VIEW local_cache_stat AS SELECT * FROM local_cache_statistics();

-- As with pg_buffercache: which pages are read is not everybody's business.
REVOKE ALL ON FUNCTION local_cache_pages() FROM PUBLIC;
REVOKE ALL ON local_cache FROM PUBLIC;
GRANT EXECUTE ON FUNCTION local_cache_pages() TO pg_monitor;
GRANT SELECT ON local_cache TO pg_monitor;
GRANT SELECT ON local_cache_stat TO PUBLIC;

-- How far a hot standby is behind what the safekeepers have committed; no row if it does not receive WAL.
CREATE VIEW standby_lag AS
    SELECT latest_end_lsn AS commit_lsn,
           flushed_lsn AS received_lsn,
           pg_last_wal_replay_lsn() AS replayed_lsn,
           pg_wal_lsn_diff(latest_end_lsn, pg_last_wal_replay_lsn()) AS lag_bytes,
           CASE WHEN pg_last_wal_replay_lsn() >= latest_end_lsn THEN interval '0'
                ELSE clock_timestamp() - pg_last_xact_replay_timestamp() END AS lag_time
    FROM pg_stat_wal_receiver
    WHERE pg_is_in_recovery();
