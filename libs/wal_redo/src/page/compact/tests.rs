#![allow(clippy::unwrap_used)] // The helpers belong to the tests.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What happens to a line pointer.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It gets an item of that length, filled with a byte, if it is free.
    Put(usize, u8),
    Free,
    Redirect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (24..300usize, any::<u8>()).prop_map(|(len, byte)| Step::Put(len, byte)),
        2 => Just(Step::Free),
        1 => Just(Step::Redirect),
    ]
}

/// Adds an item if there is room.
fn put(page: &mut Page<'_>, items: &mut BTreeMap<u16, Vec<u8>>, number: u16, bytes: Vec<u8>) {
    if let Ok(range) = page.place_heap_item(number, bytes.len()) {
        page.bytes_mut()[range].copy_from_slice(&bytes);
        items.insert(number, bytes);
    }
}

/// Every item has its bytes, and they lie without gaps from the end of the page on, the first one last.
fn check(page: &Page<'_>, items: &BTreeMap<u16, Vec<u8>>) {
    let mut end = page.special();
    for (number, bytes) in items {
        assert_eq!(page.item(*number).unwrap(), bytes, "item {number}");
        end -= maxalign(bytes.len());
        assert_eq!(
            usize::from(page.item_id(*number).unwrap().offset),
            end,
            "item {number}"
        );
    }
    assert_eq!(page.upper(), end);
}

/// A line pointer, mostly of an item that may well be there.
fn line_pointer() -> impl Strategy<Value = u32> {
    let item =
        (0..1024u32, 0..4u32, 0..300u32).prop_map(|(at, state, len)| (at * 8) | (state << 15) | (len << 17));
    prop_oneof![8 => item, 1 => any::<u32>(), 1 => Just(0)]
}

proptest! {
    #[test]
    fn damaged_line_pointers(ids in proptest::collection::vec(line_pointer(), 0..100), upper in 400..8192usize) {
        let mut raw = [0; PAGE_SIZE];
        let mut page = Page::new(&mut raw);
        page.init(16);
        page.set_lower(HEADER_LEN + ITEM_ID_LEN * ids.len());
        page.set_upper(upper.max(page.lower()).min(page.special()));
        for (number, id) in (1..).zip(&ids) {
            page.put_u32(item_id_at(number), *id).unwrap();
        }
        let bounds = page.items_bounds();
        let all_inside = (1..=page.max_offset()).all(|number| {
            let id = page.item_id(number).unwrap();
            id.state == ItemState::Unused || !id.has_storage() || bounds.kept(number, id).is_ok()
        });
        let repaired = page.repair_fragmentation();
        prop_assert!(all_inside || repaired.is_err());
    }

    #[test]
    fn items_are_packed_in_the_order_of_their_numbers(
        first in proptest::collection::vec(24..300usize, 1..60),
        rounds in proptest::collection::vec(proptest::collection::vec((1..60u16, step()), 0..40), 1..4),
    ) {
        let mut raw = [0; PAGE_SIZE];
        let mut page = Page::new(&mut raw);
        page.init(16);
        let mut items = BTreeMap::new();
        for (number, len) in (1..).zip(first) {
            put(&mut page, &mut items, number, vec![number as u8; len]);
        }
        for steps in rounds {
            for (number, step) in steps {
                match step {
                    Step::Put(len, byte) => put(&mut page, &mut items, number, vec![byte; len]),
                    Step::Free if page.set_item_id(number, ItemId::UNUSED).is_ok() => {
                        items.remove(&number);
                    }
                    Step::Redirect if items.remove(&number).is_some() => {
                        let id = ItemId { offset: 1, state: ItemState::Redirect, len: 0 };
                        page.set_item_id(number, id).unwrap();
                    }
                    _ => {}
                }
            }
            page.repair_fragmentation().unwrap();
            check(&page, &items);
            let used = |number: &u16| page.item_id(*number).unwrap().state != ItemState::Unused;
            prop_assert!(page.max_offset() == 0 || used(&page.max_offset()), "the last line pointer is in use");
            let some_free = (1..page.max_offset()).any(|number| !used(&number));
            prop_assert_eq!(page.flags() & super::super::PD_HAS_FREE_LINES != 0, some_free);
        }
    }
}
