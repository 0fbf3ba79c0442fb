use super::*;

fn tag(number: u32) -> PageTag {
    PageTag {
        spcnode: 1663,
        dbnode: 5,
        relnode: 16384 + number % 3,
        forknum: 0,
        // Neighbours at both ends of extents, some of which have the same slot among the recent ones.
        blkno: number / 3 % 4 * 65_536 + number % 2 * 255,
    }
}

/// First byte of each page there is.
fn contents(pages: &mut Pages) -> HashMap<PageTag, u8> {
    let tags = (0..24).map(tag);
    tags.filter_map(|tag| Some((tag, pages.get(&tag).unwrap()?[0])))
        .collect()
}

#[test]
fn a_place_is_forgotten_with_its_page() {
    let mut pages = Pages::new(None);
    let mut model = HashMap::new();
    let mut random = 7u32;
    for step in 0..20_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let tag = tag(random >> 8);
        match random >> 24 {
            0..10 => {
                pages.remove(&tag);
                model.remove(&tag);
            }
            10..15 => {
                pages.truncate(relation(&tag), 0, tag.blkno);
                model.retain(|known: &PageTag, _| known.relnode != tag.relnode || known.blkno < tag.blkno);
            }
            15..18 => {
                pages.drop_relation(relation(&tag));
                model.retain(|known, _| known.relnode != tag.relnode);
            }
            _ => {
                let page = pages.get_or_new(&tag).unwrap();
                assert_eq!(page[0], model.get(&tag).copied().unwrap_or(0), "step {step}");
                page[0] = step as u8;
                model.insert(tag, step as u8);
            }
        }
        if step % 16 == 0 {
            assert_eq!(contents(&mut pages), model, "step {step}");
        }
    }
    assert!(pages.slab.len < 100, "places are used again");
}
