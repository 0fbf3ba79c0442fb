\echo Use "CREATE EXTENSION neon_test_utils" to load this file. \quit

CREATE FUNCTION test_consume_xids(nxids int)
RETURNS void
AS 'MODULE_PATHNAME', 'test_consume_xids'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE FUNCTION clear_buffer_cache()
RETURNS void
AS 'MODULE_PATHNAME', 'clear_buffer_cache'
LANGUAGE C STRICT
PARALLEL UNSAFE;

-- The LSN may be null: the newest version.
CREATE FUNCTION get_raw_page_at_lsn(relname text, forkname text, blocknum int8, request_lsn pg_lsn)
RETURNS bytea
AS 'MODULE_PATHNAME', 'get_raw_page_at_lsn'
LANGUAGE C
PARALLEL UNSAFE;

CREATE FUNCTION get_raw_page_at_lsn(tbspc oid, db oid, relfilenode oid, forknum int4, blocknum int8, request_lsn pg_lsn)
RETURNS bytea
AS 'MODULE_PATHNAME', 'get_raw_page_at_lsn_by_number'
LANGUAGE C
PARALLEL UNSAFE;

-- Which OID is handed out next.
CREATE FUNCTION set_next_oid(next_oid oid)
RETURNS void
AS 'MODULE_PATHNAME', 'set_next_oid'
LANGUAGE C STRICT
PARALLEL UNSAFE;

CREATE FUNCTION neon_xlogflush(lsn pg_lsn)
RETURNS void
AS 'MODULE_PATHNAME', 'neon_xlogflush'
LANGUAGE C STRICT
PARALLEL UNSAFE;

-- Pages of a table or index that differ, masked, between this server's buffers and the page server.
CREATE FUNCTION compare_pages(relation regclass, OUT fork text, OUT block int8, OUT byte int4)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'compare_pages'
LANGUAGE C STRICT
PARALLEL UNSAFE;
