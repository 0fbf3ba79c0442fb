//! Each rule that is broken on purpose is found: the simulator can fail, and the rules are needed.

use safekeeper_api::mutation::{self, Mutation};
use simulator::{TraceMode, run};

/// Every mutation is found within this many seeds.
const SEEDS_MAX: u64 = 20000;

#[test]
fn every_mutation_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    let wanted = std::env::var("MUTATION").ok();
    for mutation in Mutation::ALL {
        if wanted
            .as_ref()
            .is_some_and(|name| *name != format!("{mutation:?}"))
        {
            continue;
        }
        mutation::set(Some(mutation));
        let found = (1..=SEEDS_MAX).find_map(|seed| Some((seed, run(seed, TraceMode::Off).violation?)));
        mutation::set(None);
        match found {
            Some((seed, violation)) => println!("{mutation:?}: seed {seed}: {violation}"),
            None => missed.push(mutation),
        }
    }
    assert_eq!(missed, [], "not found within {SEEDS_MAX} seeds");
}
