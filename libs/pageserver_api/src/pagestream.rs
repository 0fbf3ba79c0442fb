//! Messages of the `pagestream` command (libpq services, section 3): what a compute asks, and what the
//! pageserver answers. Each is the payload of one `CopyData`; all integers are big-endian.

use bytes::{Buf, BufMut, Bytes};
use utils::lsn::Lsn;

use crate::reltag::{Fork, RelTag};

/// Bytes of a page.
pub const PAGE_LEN: usize = 8192;

/// At which point of the timeline's history the answer is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RequestLsn {
    /// Whether the newest version is wanted; `lsn` then only says that what is asked for has not
    /// changed since (0: nothing is known).
    pub latest: bool,
    /// The LSN.
    pub lsn: Lsn,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Query {
    /// Whether a relation fork exists.
    Exists(RelTag),
    /// How many blocks it has.
    Nblocks(RelTag),
    /// One of its pages.
    GetPage {
        /// Relation fork.
        rel: RelTag,
        /// Block number.
        block: u32,
    },
    /// Size of a database, in the default tablespace.
    DbSize {
        /// Database.
        dbnode: u32,
    },
    /// Size of a database in one tablespace. Not in the reference release; the answer is that to `DbSize`.
    DbSizeIn {
        /// Tablespace.
        spcnode: u32,
        /// Database.
        dbnode: u32,
    },
}

/// A request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// When.
    pub at: RequestLsn,
    /// What.
    pub query: Query,
}

/// An answer. Answers come in the order of the requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Response {
    /// To [`Query::Exists`].
    Exists(bool),
    /// To [`Query::Nblocks`].
    Nblocks(u32),
    /// To [`Query::GetPage`]: [`PAGE_LEN`] bytes.
    GetPage(Bytes),
    /// To any request that failed.
    Error(String),
    /// To [`Query::DbSize`] and [`Query::DbSizeIn`], in bytes.
    DbSize(u64),
}

/// The bytes are not a message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// No message has this tag. The stream cannot go on.
    #[error("unknown smgr message tag: {0}")]
    UnknownTag(u8),
    /// There are more or fewer bytes than the message has.
    #[error("{what} message has {got} bytes instead of {want}")]
    Length {
        /// Which message.
        what: &'static str,
        /// Bytes it must have, tag included.
        want: usize,
        /// Bytes there are.
        got: usize,
    },
    /// A field has a value it cannot have.
    #[error("invalid {0}")]
    Field(&'static str),
}

const REL_REQUEST_LEN: usize = 1 + 1 + 8 + 13;

impl Request {
    /// Reads a request.
    pub fn decode(raw: &[u8]) -> Result<Self, DecodeError> {
        let (what, want) = match raw.first() {
            Some(0) => ("Exists", REL_REQUEST_LEN),
            Some(1) => ("Nblocks", REL_REQUEST_LEN),
            Some(2) => ("GetPage", REL_REQUEST_LEN + 4),
            Some(3) => ("DbSize", 14),
            Some(4) => ("DbSizeIn", 18),
            Some(other) => return Err(DecodeError::UnknownTag(*other)),
            None => ("pagestream", 1),
        };
        check_len(what, raw, want)?;
        let mut rest = raw;
        let tag = rest.get_u8();
        let at = RequestLsn {
            latest: rest.get_u8() != 0,
            lsn: Lsn(rest.get_u64()),
        };
        let query = match tag {
            0 => Query::Exists(get_rel(&mut rest)?),
            1 => Query::Nblocks(get_rel(&mut rest)?),
            2 => Query::GetPage {
                rel: get_rel(&mut rest)?,
                block: rest.get_u32(),
            },
            3 => Query::DbSize {
                dbnode: rest.get_u32(),
            },
            _ => Query::DbSizeIn {
                spcnode: rest.get_u32(),
                dbnode: rest.get_u32(),
            },
        };
        Ok(Request { at, query })
    }

    /// Appends the request.
    pub fn encode(&self, out: &mut impl BufMut) {
        let tag = match self.query {
            Query::Exists(_) => 0,
            Query::Nblocks(_) => 1,
            Query::GetPage { .. } => 2,
            Query::DbSize { .. } => 3,
            Query::DbSizeIn { .. } => 4,
        };
        out.put_u8(tag);
        out.put_u8(u8::from(self.at.latest));
        out.put_u64(self.at.lsn.0);
        match self.query {
            Query::Exists(rel) | Query::Nblocks(rel) => put_rel(out, rel),
            Query::GetPage { rel, block } => {
                put_rel(out, rel);
                out.put_u32(block);
            }
            Query::DbSize { dbnode } => out.put_u32(dbnode),
            Query::DbSizeIn { spcnode, dbnode } => {
                out.put_u32(spcnode);
                out.put_u32(dbnode);
            }
        }
    }
}

impl Response {
    /// Reads an answer; a page shares memory with `raw`.
    pub fn decode(mut raw: Bytes) -> Result<Self, DecodeError> {
        let (what, want) = match raw.first() {
            Some(100) => ("Exists", 2),
            Some(101) => ("Nblocks", 5),
            Some(102) => ("GetPage", 1 + PAGE_LEN),
            Some(103) => ("Error", raw.len()),
            Some(104) => ("DbSize", 9),
            Some(other) => return Err(DecodeError::UnknownTag(*other)),
            None => ("pagestream", 1),
        };
        check_len(what, &raw, want)?;
        Ok(match raw.get_u8() {
            100 => Response::Exists(raw.get_u8() != 0),
            101 => Response::Nblocks(raw.get_u32()),
            102 => Response::GetPage(raw),
            103 => {
                let text = raw.strip_suffix(b"\0").ok_or(DecodeError::Field("error text"))?;
                Response::Error(String::from_utf8_lossy(text).into_owned())
            }
            _ => Response::DbSize(raw.get_u64()),
        })
    }

    /// Appends the answer.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Response::Exists(exists) => {
                out.put_u8(100);
                out.put_u8(u8::from(*exists));
            }
            Response::Nblocks(blocks) => {
                out.put_u8(101);
                out.put_u32(*blocks);
            }
            Response::GetPage(page) => {
                assert_eq!(page.len(), PAGE_LEN, "a page has a fixed size");
                out.put_u8(102);
                out.put_slice(page);
            }
            Response::Error(text) => {
                out.put_u8(103);
                // The text ends at the first NUL, so it cannot hold one.
                out.put_slice(text.replace('\0', "?").as_bytes());
                out.put_u8(0);
            }
            Response::DbSize(bytes) => {
                out.put_u8(104);
                out.put_u64(*bytes);
            }
        }
    }
}

fn check_len(what: &'static str, raw: &[u8], want: usize) -> Result<(), DecodeError> {
    let got = raw.len();
    if got == want {
        Ok(())
    } else {
        Err(DecodeError::Length { what, want, got })
    }
}

fn get_rel(rest: &mut &[u8]) -> Result<RelTag, DecodeError> {
    let (spcnode, dbnode, relnode) = (rest.get_u32(), rest.get_u32(), rest.get_u32());
    let fork = Fork::try_from(rest.get_u8()).map_err(|_| DecodeError::Field("fork number"))?;
    if relnode == 0 {
        return Err(DecodeError::Field("relnode"));
    }
    Ok(RelTag {
        spcnode,
        dbnode,
        relnode,
        fork,
    })
}

fn put_rel(out: &mut impl BufMut, rel: RelTag) {
    out.put_u32(rel.spcnode);
    out.put_u32(rel.dbnode);
    out.put_u32(rel.relnode);
    out.put_u8(rel.fork as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> impl Strategy<Value = Request> {
        let rel =
            (any::<u32>(), any::<u32>(), 1u32.., 0..4usize).prop_map(|(spcnode, dbnode, relnode, fork)| {
                RelTag {
                    spcnode,
                    dbnode,
                    relnode,
                    fork: Fork::ALL[fork],
                }
            });
        let query = (rel, any::<u32>(), 0..5).prop_map(|(rel, number, kind)| match kind {
            0 => Query::Exists(rel),
            1 => Query::Nblocks(rel),
            2 => Query::GetPage { rel, block: number },
            3 => Query::DbSize { dbnode: number },
            _ => Query::DbSizeIn {
                spcnode: rel.spcnode,
                dbnode: number,
            },
        });
        (query, any::<(bool, u64)>()).prop_map(|(query, (latest, lsn))| Request {
            at: RequestLsn {
                latest,
                lsn: Lsn(lsn),
            },
            query,
        })
    }

    fn response() -> impl Strategy<Value = Response> {
        prop_oneof![
            any::<bool>().prop_map(Response::Exists),
            any::<u32>().prop_map(Response::Nblocks),
            any::<u8>().prop_map(|byte| Response::GetPage(vec![byte; PAGE_LEN].into())),
            "[a-z ]{0,30}".prop_map(Response::Error),
            any::<u64>().prop_map(Response::DbSize),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(request in request()) {
            let mut raw = Vec::new();
            request.encode(&mut raw);
            prop_assert_eq!(Request::decode(&raw), Ok(request));
            for len in 0..raw.len() {
                prop_assert!(Request::decode(&raw[..len]).is_err());
            }
            raw.push(0);
            prop_assert!(Request::decode(&raw).is_err());
        }

        #[test]
        fn responses_round_trip(response in response()) {
            let mut raw = Vec::new();
            response.encode(&mut raw);
            prop_assert_eq!(Response::decode(Bytes::from(raw)), Ok(response));
        }

        #[test]
        fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Request::decode(&raw);
            let _ = Response::decode(Bytes::from(raw));
        }
    }

    #[test]
    fn documented_bytes() {
        let raw = [
            &[2, 1][..],
            &0x0102u64.to_be_bytes(),
            &1663u32.to_be_bytes(),
            &5u32.to_be_bytes(),
            &16384u32.to_be_bytes(),
            &[2],
            &7u32.to_be_bytes(),
        ]
        .concat();
        let request = Request::decode(&raw).unwrap();
        assert_eq!(
            request.at,
            RequestLsn {
                latest: true,
                lsn: Lsn(0x0102)
            }
        );
        let rel = RelTag {
            spcnode: 1663,
            dbnode: 5,
            relnode: 16384,
            fork: Fork::Vm,
        };
        assert_eq!(request.query, Query::GetPage { rel, block: 7 });
        let no_rel = [&[0, 1][..], &[0; 21]].concat();
        assert_eq!(Request::decode(&no_rel), Err(DecodeError::Field("relnode")));
    }
}
