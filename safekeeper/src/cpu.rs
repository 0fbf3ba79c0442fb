//! On which CPU the process runs.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Makes this thread, and all that it starts from now on, run on one CPU only.
///
/// # Errors
/// There is no such CPU, or it may not be used.
pub fn stay_on(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    }

    #[test]
    fn a_thread_stays_where_it_is_told_to() {
        let last = *allowed().last().unwrap();
        let inherited = std::thread::spawn(move || {
            stay_on(last).unwrap();
            std::thread::spawn(allowed).join().unwrap()
        });
        assert_eq!(inherited.join().unwrap(), [last]);
    }

    #[test]
    fn what_is_no_cpu_is_refused() {
        let before = allowed();
        assert!(stay_on(CpuSet::MAX_CPU).is_err());
        assert!(stay_on(CpuSet::MAX_CPU - 1).is_err());
        assert_eq!(allowed(), before);
    }
}
