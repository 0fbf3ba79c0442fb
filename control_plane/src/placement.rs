//! Which CPUs the parts of a cluster run on that a commit passes through.
//!
//! A commit goes from process to process, and each does little before it sleeps again. Where they are left to the
//! kernel, each is woken on a CPU that sleeps, which takes longer than its work, most of all in a virtual machine.
//! So several safekeepers on one machine take turns on one CPU, and what hands WAL to them and answers back to the
//! server takes turns on another. Backends and the pageserver, which do the work, run anywhere.

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::env::LocalEnv;

/// Numbers of CPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Placement {
    /// Of all walproposers with their walsenders.
    pub walproposer: usize,
    /// Of all safekeepers.
    pub safekeepers: usize,
}

impl Placement {
    /// That of this cluster's processes; `None` if they run anywhere.
    pub fn of(env: &LocalEnv) -> Option<Placement> {
        let allowed = sched_getaffinity(None).ok()?;
        let allowed = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        Self::among(&allowed.collect::<Vec<_>>(), env.config.safekeepers.len())
    }

    /// The first and the last of the CPUs, if there are several of them, and several safekeepers.
    fn among(cpus: &[usize], safekeepers: usize) -> Option<Placement> {
        match (cpus, safekeepers) {
            ([first, .., last], 2..) => Some(Placement {
                walproposer: *first,
                safekeepers: *last,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_safekeepers_are_placed_and_only_where_there_is_room() {
        let placed = |cpus: &[usize], count| {
            Placement::among(cpus, count).map(|placement| (placement.walproposer, placement.safekeepers))
        };
        assert_eq!(placed(&[0, 1], 3), Some((0, 1)));
        assert_eq!(placed(&[2, 5, 6, 9], 2), Some((2, 9)));
        assert_eq!(placed(&[0, 1], 1), None);
        assert_eq!(placed(&[0], 3), None);
        assert_eq!(placed(&[], 3), None);
    }
}
