use crate::{TraceMode, run};

#[test]
fn the_same_seed_is_the_same_run() {
    let mut digests = std::collections::HashSet::new();
    for seed in 1..=30 {
        // In two threads: nothing outside the run must reach into it.
        let [first, second] = std::thread::scope(|scope| {
            [(); 2]
                .map(|()| scope.spawn(|| run(seed, TraceMode::Digest)))
                .map(|thread| thread.join().unwrap())
        });
        assert_eq!(first, second, "seed {seed}");
        digests.insert(first.trace_digest);
    }
    assert_eq!(digests.len(), 30, "other seeds are other runs");
}
