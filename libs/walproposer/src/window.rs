//! WAL of the local server that is kept in memory: a contiguous range, as the pieces it came in.

use std::collections::VecDeque;

use bytes::Bytes;
use utils::lsn::Lsn;

/// WAL from `start` to `end`. Pieces handed out share its memory.
#[derive(Debug)]
pub(crate) struct WalWindow {
    /// Begin and bytes of each piece, none of them empty; each begins where the one before ends.
    pieces: VecDeque<(Lsn, Bytes)>,
    end: Lsn,
}

impl WalWindow {
    /// An empty window that grows from `start`.
    pub(crate) fn new(start: Lsn) -> WalWindow {
        WalWindow {
            pieces: VecDeque::new(),
            end: start,
        }
    }

    pub(crate) fn start(&self) -> Lsn {
        self.pieces.front().map_or(self.end, |(begin, _)| *begin)
    }

    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// Adds WAL that begins at `end`.
    pub(crate) fn push(&mut self, wal: Bytes) {
        if wal.is_empty() {
            return;
        }
        let begin = self.end;
        self.end += wal.len() as u64;
        self.pieces.push_back((begin, wal));
    }

    /// The WAL from `begin` on, at most `bytes_max` of it and no more than one piece has.
    pub(crate) fn at(&self, begin: Lsn, bytes_max: usize) -> Bytes {
        assert!(
            self.start() <= begin && begin < self.end,
            "{begin} is not in the window"
        );
        let behind = self.pieces.partition_point(|(start, _)| *start <= begin);
        let (start, wal) = &self.pieces[behind - 1];
        let offset = usize::try_from(begin - *start).expect("a piece is shorter than the address space");
        wal.slice(offset..wal.len().min(offset + bytes_max))
    }

    /// Drops the pieces that end at or before `lsn`.
    pub(crate) fn release(&mut self, lsn: Lsn) {
        while let Some((begin, wal)) = self.pieces.front()
            && *begin + wal.len() as u64 <= lsn
        {
            self.pieces.pop_front();
        }
        assert!(self.start() <= self.end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks() {
        let mut window = WalWindow::new(Lsn(100));
        assert_eq!((window.start(), window.end()), (Lsn(100), Lsn(100)));
        for piece in ["abc", "", "d", "efgh"] {
            window.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!((window.start(), window.end()), (Lsn(100), Lsn(108)));
        for (lsn, max, want) in [
            (100, 9, "abc"),
            (101, 9, "bc"),
            (101, 1, "b"),
            (103, 9, "d"),
            (104, 9, "efgh"),
            (107, 9, "h"),
        ] {
            assert_eq!(window.at(Lsn(lsn), max), want, "at {lsn}");
        }
        window.release(Lsn(102));
        assert_eq!(window.start(), Lsn(100), "only whole pieces go");
        window.release(Lsn(104));
        assert_eq!(window.start(), Lsn(104));
        window.release(Lsn(200));
        assert_eq!((window.start(), window.end()), (Lsn(108), Lsn(108)));
    }
}
