//! A leaf page's chain is divided among the nodes of a new inner tuple; its leaf tuples stay on their page or
//! move to a second one.

use postgres_ffi::cursor::Cursor;

use super::tuple::{self, Downlink, Replacement, SpgistPage, Target};
use super::{State, flag, leaf_flags};
use crate::change::Change;
use crate::fault::Fault;
use crate::offsets::Offsets;
use crate::page::Page;

/// `spgxlogPickSplit` and the arrays behind it.
struct Record<'a> {
    init_source: bool,
    init_destination: bool,
    inner_number: u16,
    init_inner: bool,
    stores_nulls: bool,
    inner_is_parent: bool,
    parent: u16,
    node: u16,
    state: State,
    deleted: Offsets<'a>,
    inserted: Offsets<'a>,
    /// For each inserted tuple whether it goes to the second page.
    to_destination: &'a [u8],
    inner: &'a [u8],
    /// The inserted leaf tuples.
    leaves: Cursor<'a>,
}

impl<'a> Record<'a> {
    fn read(mut main: Cursor<'a>) -> Result<Self, Fault> {
        main.skip(2)?; // whether the root was split, padding
        let (deleted, inserted) = (usize::from(main.u16()?), usize::from(main.u16()?));
        let (init_source, init_destination) = (flag(&mut main)?, flag(&mut main)?);
        let inner_number = main.u16()?;
        let (init_inner, stores_nulls) = (flag(&mut main)?, flag(&mut main)?);
        let inner_is_parent = flag(&mut main)?;
        main.skip(1)?; // padding
        let (parent, node) = (main.u16()?, main.u16()?);
        main.skip(2)?; // padding
        Ok(Record {
            init_source,
            init_destination,
            inner_number,
            init_inner,
            stores_nulls,
            inner_is_parent,
            parent,
            node,
            state: State::read(&mut main)?,
            deleted: Offsets::read(&mut main, deleted)?,
            inserted: Offsets::read(&mut main, inserted)?,
            to_destination: main.bytes(inserted)?,
            inner: tuple::take_inner(&mut main)?,
            leaves: main,
        })
    }

    /// Adds the leaf tuples of one of the two leaf pages.
    fn add_leaves(&self, page: &mut Page<'_>, to_destination: bool) -> Result<(), Fault> {
        let mut leaves = self.leaves;
        for (number, side) in self.inserted.iter().zip(self.to_destination) {
            let leaf = tuple::take_leaf(&mut leaves)?;
            if (*side != 0) == to_destination {
                page.add_or_replace(number, leaf)?;
            }
        }
        Ok(())
    }
}

pub(super) fn redo(change: &Change<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let record = Record::read(change.main())?;
    let inner = Target {
        block: change.blkno_of(2)?,
        number: record.inner_number,
    };
    let downlink = Downlink {
        parent: record.parent,
        node: record.node,
        target: inner,
    };
    match change.block.id {
        0 => {
            if record.init_source {
                page.init_spgist(leaf_flags(record.stores_nulls))?;
            } else {
                let first = record.state.moved_to(inner);
                page.replace_with_dead(record.deleted, first, Replacement::Placeholder)?;
            }
            record.add_leaves(page, false)
        }
        1 => {
            if record.init_destination {
                page.init_spgist(leaf_flags(record.stores_nulls))?;
            }
            record.add_leaves(page, true)
        }
        2 => {
            if record.init_inner {
                page.init_spgist(if record.stores_nulls {
                    tuple::flag::NULLS
                } else {
                    0
                })?;
            }
            page.add_or_replace(record.inner_number, record.inner)?;
            if record.inner_is_parent {
                page.set_downlink(downlink)?;
            }
            Ok(())
        }
        3 => page.set_downlink(downlink),
        _ => change.unexpected_block(),
    }
}
