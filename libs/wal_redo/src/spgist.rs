//! SP-GiST indexes.
//!
//! | record | 0 | 1 | 2 | 3 |
//! |---|---|---|---|---|
//! | add leaf | leaf page | parent | | |
//! | move leaves | from | to | parent | |
//! | add node | page | page of the new tuple | parent | |
//! | split tuple | page of the prefix tuple | page of the postfix tuple | | |
//! | pick split | source leaf page | destination leaf page | page of the new inner tuple | parent |
//! | vacuum | page | | | |
//!
//! The tuples and their places are all in the main data.

mod pick_split;
mod tuple;

use postgres_ffi::cursor::Cursor;
use postgres_ffi::v15::rmgr::{
    XLOG_SPGIST_ADD_LEAF, XLOG_SPGIST_ADD_NODE, XLOG_SPGIST_MOVE_LEAFS, XLOG_SPGIST_PICKSPLIT,
    XLOG_SPGIST_SPLIT_TUPLE, XLOG_SPGIST_VACUUM_LEAF, XLOG_SPGIST_VACUUM_REDIRECT, XLOG_SPGIST_VACUUM_ROOT,
};

use self::tuple::{Downlink, Opaque, Replacement, SpgistPage, Target, flag};
use crate::change::{Change, Effect};
use crate::fault::Fault;
use crate::offsets::Offsets;
use crate::page::Page;

pub(crate) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<Effect, Fault> {
    match change.info() {
        XLOG_SPGIST_ADD_LEAF => add_leaf(change, page)?,
        XLOG_SPGIST_MOVE_LEAFS => move_leaves(change, page)?,
        XLOG_SPGIST_ADD_NODE => add_node(change, page)?,
        XLOG_SPGIST_SPLIT_TUPLE => split_tuple(change, page)?,
        XLOG_SPGIST_PICKSPLIT => pick_split::redo(change, page)?,
        XLOG_SPGIST_VACUUM_LEAF => vacuum_leaf(change, page)?,
        XLOG_SPGIST_VACUUM_ROOT => {
            let mut main = change.main();
            let count = usize::from(main.u16()?);
            main.skip(2)?; // padding
            State::read(&mut main)?;
            page.delete_items(Offsets::read(&mut main, count)?.iter())?;
        }
        XLOG_SPGIST_VACUUM_REDIRECT => vacuum_redirect(change, page)?,
        _ => return Err(Fault::Unknown),
    }
    Ok(Effect::Changed)
}

/// `spgxlogState`: who left redirects, and whether none are needed because nobody sees the index yet.
#[derive(Clone, Copy)]
struct State {
    xid: u32,
    is_build: bool,
}

impl State {
    fn read(main: &mut Cursor<'_>) -> Result<Self, Fault> {
        let state = State {
            xid: main.u32()?,
            is_build: main.u8()? != 0,
        };
        main.skip(3)?; // padding
        Ok(state)
    }

    /// What a tuple that moved leaves behind.
    fn moved_to(self, target: Target) -> Replacement {
        if self.is_build {
            Replacement::Placeholder
        } else {
            Replacement::Redirect {
                target,
                xid: self.xid,
            }
        }
    }
}

/// Flags of a leaf page.
fn leaf_flags(stores_nulls: bool) -> u16 {
    flag::LEAF | if stores_nulls { flag::NULLS } else { 0 }
}

/// Reads a C `bool`.
fn flag(main: &mut Cursor<'_>) -> Result<bool, Fault> {
    Ok(main.u8()? != 0)
}

fn add_leaf(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (new_page, stores_nulls) = (flag(&mut main)?, flag(&mut main)?);
    let (number, head) = (main.u16()?, main.u16()?);
    let downlink = Downlink {
        parent: main.u16()?,
        node: main.u16()?,
        target: Target {
            block: change.blkno_of(0)?,
            number,
        },
    };
    let leaf = tuple::take_leaf(&mut main)?;
    match change.block.id {
        0 => {
            if new_page {
                page.init_spgist(leaf_flags(stores_nulls))?;
            }
            if number == head {
                // The chain's head was dead.
                page.delete_item(number)?;
                return page.insert_item(number, leaf);
            }
            page.add_or_replace(number, leaf)?;
            if head != 0 {
                page.set_next_in_chain(head, number)?;
            }
            Ok(())
        }
        1 => page.set_downlink(downlink),
        _ => change.unexpected_block(),
    }
}

fn move_leaves(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let moves = usize::from(main.u16()?);
    let (new_page, replace_dead, stores_nulls) = (flag(&mut main)?, flag(&mut main)?, flag(&mut main)?);
    main.skip(1)?; // padding
    let (parent, node) = (main.u16()?, main.u16()?);
    main.skip(2)?; // padding
    let state = State::read(&mut main)?;
    let deleted = Offsets::read(&mut main, moves)?;
    let inserted = Offsets::read(&mut main, if replace_dead { 1 } else { moves + 1 })?;
    let target = Target {
        block: change.blkno_of(1)?,
        number: inserted.iter().next_back().unwrap_or(0),
    };
    match change.block.id {
        0 => page.replace_with_dead(deleted, state.moved_to(target), Replacement::Placeholder),
        1 => {
            if new_page {
                page.init_spgist(leaf_flags(stores_nulls))?;
            }
            for number in inserted.iter() {
                page.add_or_replace(number, tuple::take_leaf(&mut main)?)?;
            }
            Ok(())
        }
        2 => page.set_downlink(Downlink { parent, node, target }),
        _ => change.unexpected_block(),
    }
}

fn add_node(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (old_number, new_number) = (main.u16()?, main.u16()?);
    let (new_page, parent_block) = (flag(&mut main)?, main.u8()?);
    let (parent, node) = (main.u16()?, main.u16()?);
    main.skip(2)?; // padding
    let state = State::read(&mut main)?;
    let inner = tuple::take_inner(&mut main)?;
    let Some(new_block) = change.other(1) else {
        // The tuple grew where it is.
        page.delete_item(old_number)?;
        return page.insert_item(old_number, inner);
    };
    let target = Target {
        block: new_block.blkno,
        number: new_number,
    };
    match change.block.id {
        0 => page.replace_one_with_dead(old_number, state.moved_to(target))?,
        1 => {
            if new_page {
                page.init_spgist(0)?;
            }
            page.add_or_replace(new_number, inner)?;
        }
        2 => {}
        _ => return change.unexpected_block(),
    }
    if change.block.id == parent_block {
        page.set_downlink(Downlink { parent, node, target })?;
    }
    Ok(())
}

fn split_tuple(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (prefix_number, postfix_number) = (main.u16()?, main.u16()?);
    let (new_page, same_page) = (flag(&mut main)?, flag(&mut main)?);
    let prefix = tuple::take_inner(&mut main)?;
    let postfix = tuple::take_inner(&mut main)?;
    match change.block.id {
        0 => {
            page.delete_item(prefix_number)?;
            page.insert_item(prefix_number, prefix)?;
            if same_page {
                page.add_or_replace(postfix_number, postfix)?;
            }
            Ok(())
        }
        1 => {
            if new_page {
                page.init_spgist(0)?;
            }
            page.add_or_replace(postfix_number, postfix)
        }
        _ => change.unexpected_block(),
    }
}

fn vacuum_leaf(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (dead, placeholders) = (usize::from(main.u16()?), usize::from(main.u16()?));
    let (moves, chains) = (usize::from(main.u16()?), usize::from(main.u16()?));
    State::read(&mut main)?;
    let dead = Offsets::read(&mut main, dead)?;
    let placeholders = Offsets::read(&mut main, placeholders)?;
    let (move_from, move_to) = (Offsets::read(&mut main, moves)?, Offsets::read(&mut main, moves)?);
    let (chain_from, chain_to) = (
        Offsets::read(&mut main, chains)?,
        Offsets::read(&mut main, chains)?,
    );
    page.replace_with_dead(dead, Replacement::Dead, Replacement::Dead)?;
    let placeholder = Replacement::Placeholder;
    page.replace_with_dead(placeholders, placeholder, placeholder)?;
    for (from, to) in move_from.iter().zip(move_to.iter()) {
        let (from_id, to_id) = (page.item_id(from)?, page.item_id(to)?);
        page.set_item_id(from, to_id)?;
        page.set_item_id(to, from_id)?;
    }
    page.replace_with_dead(move_from, placeholder, placeholder)?;
    for (from, to) in chain_from.iter().zip(chain_to.iter()) {
        page.set_next_in_chain(from, to)?;
    }
    Ok(())
}

/// Redirects that nobody can follow any more become placeholders, and placeholders at the end go.
fn vacuum_redirect(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let mut main = change.main();
    let (count, first_placeholder) = (main.u16()?, main.u16()?);
    main.skip(4)?; // newest transaction of the redirects: for conflicts with standby queries
    for number in Offsets::read(&mut main, usize::from(count))?.iter() {
        tuple::redirect_to_placeholder(page.item_mut(number)?)?;
    }
    let mut opaque = Opaque::read(page)?;
    opaque.redirects = opaque.redirects.wrapping_sub(count);
    opaque.placeholders = opaque.placeholders.wrapping_add(count);
    if first_placeholder != 0 {
        let last = page.max_offset();
        let removed = (first_placeholder..last + 1).len() as u16;
        opaque.placeholders = opaque.placeholders.wrapping_sub(removed);
        page.delete_items(first_placeholder..last + 1)?;
    }
    opaque.write(page)
}
