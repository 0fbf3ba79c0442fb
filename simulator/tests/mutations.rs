//! Each rule that is broken on purpose is found: the simulator can fail, and the rules are needed.
//!
//! `MUTATION=Name` tries one only, `FIRST_SEED=k` other seeds.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use safekeeper_api::mutation::{self, Mutation};
use simulator::{TraceMode, run};

/// The mutation is found within this many seeds. Two take a rare order of elections: one that nobody
/// heard of, one that was broken off in the middle of catching up, and a majority without the donor.
fn seeds_max(mutation: Mutation) -> u64 {
    match mutation {
        Mutation::CountStaleFlush | Mutation::FetchFromLongest => 8_000,
        _ => 1_000,
    }
}

fn first_seed() -> u64 {
    let given = std::env::var("FIRST_SEED").ok();
    given.map_or(1, |seed| seed.parse().expect("FIRST_SEED is a number"))
}

/// How many seeds it takes, and what is found.
fn hunt(mutation: Mutation) -> Option<(u64, String)> {
    mutation::set(Some(mutation));
    let first = first_seed();
    let found = (0..seeds_max(mutation)).find_map(|index| {
        Some((
            index + 1,
            run(first + index, TraceMode::Off).violation?.to_string(),
        ))
    });
    mutation::set(None);
    found
}

#[test]
fn every_mutation_is_found() {
    // Panics are violations, and reported as such.
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = std::env::var("MUTATION").ok();
    let is_wanted = |mutation: &Mutation| {
        wanted
            .as_ref()
            .is_none_or(|name| *name == format!("{mutation:?}"))
    };
    let mutations: Vec<Mutation> = Mutation::ALL.into_iter().filter(is_wanted).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(mutation) = mutations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = hunt(*mutation);
                    found.lock().unwrap().insert(format!("{mutation:?}"), result);
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    for (mutation, result) in &found {
        match result {
            Some((seeds, violation)) => println!("{mutation}: {seeds} seeds: {violation}"),
            None => println!("{mutation}: not found"),
        }
    }
    assert!(found.values().all(Option::is_some), "some are not found");
    assert_eq!(found.len(), mutations.len());
}
