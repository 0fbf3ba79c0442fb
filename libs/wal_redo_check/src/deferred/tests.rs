use std::collections::BTreeMap;

use super::*;

/// A record of `len` bytes that tells its number.
fn record(number: u32, len: usize) -> Vec<u8> {
    let mut raw = vec![number as u8; len];
    raw[..4].copy_from_slice(&number.to_le_bytes());
    raw
}

/// As if so many changes had been seen, none of the pages that are met next.
fn at_clock(clock: u32) -> Deferred {
    Deferred {
        clock,
        ..Deferred::default()
    }
}

fn number_of(raw: &[u8]) -> u32 {
    u32::from_le_bytes(*raw.first_chunk().unwrap())
}

/// Hands out all that waits: each page's numbers.
fn take_all(deferred: &mut Deferred) -> BTreeMap<u32, Vec<u32>> {
    let waiting = deferred.take();
    assert!(deferred.is_empty());
    let mut all = BTreeMap::new();
    for (page, changes) in waiting.pages() {
        let numbers = changes.map(|number| {
            let change = waiting.change(number);
            let number = number_of(change.raw);
            assert_eq!(
                (change.end, change.block),
                (Lsn(u64::from(number) << 33), page as usize)
            );
            assert_eq!(change.raw, record(number, change.raw.len()));
            number
        });
        assert_eq!(all.insert(page, numbers.collect()), None, "a page has one turn");
    }
    deferred.reuse(waiting);
    all
}

fn offer(deferred: &mut Deferred, page: u32, raw: &[u8], origin: Origin) -> When {
    let change = Change {
        end: Lsn(u64::from(number_of(raw)) << 33),
        raw,
        block: page as usize,
    };
    deferred.offer(page, &change, origin)
}

#[test]
fn every_page_gets_its_changes_in_order() {
    let mut deferred = Deferred::default();
    let mut model: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let (mut random, mut rounds) = (7u32, 0);
    for number in 0..400_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Some pages are met often, most are not.
        let page = if random >> 30 == 0 {
            random >> 8 & 3
        } else {
            random >> 8 & 0x7fff
        };
        let raw = record(number, 24 + (random >> 4 & 0x3ff) as usize);
        let origin = match random >> 28 {
            5 => Origin::Nothing,
            _ => Origin::Page,
        };
        match offer(&mut deferred, page, &raw, origin) {
            When::Now => assert!(!model.contains_key(&page), "{number} comes before its turn"),
            When::Later => model.entry(page).or_default().push(number),
            When::AfterAll => {
                assert!(!deferred.is_empty());
                assert_eq!(take_all(&mut deferred), mem::take(&mut model));
                rounds += 1;
            }
        }
        assert!(deferred.log.len() <= LOG_LEN_MAX);
    }
    assert_eq!(take_all(&mut deferred), model);
    assert!(rounds > 3, "{rounds} rounds");
}

#[test]
fn what_is_made_at_once() {
    let mut deferred = at_clock(2 * RECENT);
    let (short, long) = (record(1, 30), record(2, RECORD_LEN_MAX + 1));
    assert_eq!(offer(&mut deferred, 7, &long, Origin::Page), When::Now);
    assert_eq!(
        offer(&mut deferred, 7, &short, Origin::Page),
        When::Now,
        "it is in the cache now"
    );
    assert_eq!(offer(&mut deferred, 8, &short, Origin::Nothing), When::Now);
    assert_eq!(offer(&mut deferred, 9, &long, Origin::Page), When::Now);
    deferred.clock += RECENT;
    assert_eq!(offer(&mut deferred, 9, &short, Origin::Page), When::Later);
    assert_eq!(
        offer(&mut deferred, 9, &long, Origin::Nothing),
        When::Later,
        "one waits already"
    );
    assert_eq!(take_all(&mut deferred), BTreeMap::from([(9, vec![1, 2])]));
    assert_eq!(offer(&mut deferred, 9, &short, Origin::Page), When::Now);
}

#[test]
fn a_record_too_long_to_wait() {
    let mut deferred = at_clock(RECENT);
    assert_eq!(offer(&mut deferred, 0, &record(1, 30), Origin::Page), When::Later);
    let room = LOG_LEN_MAX - 2 * HEAD_LEN - 30;
    assert_eq!(
        offer(&mut deferred, 0, &record(2, room + 1), Origin::Page),
        When::AfterAll
    );
    assert_eq!(
        offer(&mut deferred, 0, &record(3, room), Origin::Page),
        When::Later
    );
    assert_eq!(
        offer(&mut deferred, 0, &record(4, 24), Origin::Page),
        When::AfterAll
    );
    assert_eq!(take_all(&mut deferred), BTreeMap::from([(0, vec![1, 3])]));
}
