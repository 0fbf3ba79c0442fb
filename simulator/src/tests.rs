use crate::{TraceMode, run};

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 2, 3] {
        let first = run(seed, TraceMode::Digest);
        assert_eq!(first, run(seed, TraceMode::Digest), "seed {seed}");
        assert_ne!(
            first.trace_digest,
            run(seed + 100, TraceMode::Digest).trace_digest
        );
    }
}
