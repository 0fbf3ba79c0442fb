//! What the fuzz target of the safekeeper does, with inputs drawn from a seed.

#[path = "../../safekeeper/fuzz/harness.rs"]
mod harness;

const INPUTS: u64 = 20_000;
const INPUT_LEN_MAX: u64 = 1_500;

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[test]
fn an_acceptor_survives_any_bytes() {
    for seed in 1..=INPUTS {
        let mut state = seed;
        let len = next(&mut state) % INPUT_LEN_MAX;
        let input: Vec<u8> = (0..len).map(|_| next(&mut state) as u8).collect();
        if let Err(panic) = std::panic::catch_unwind(|| harness::run(&input)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// What fuzzing has tripped over.
#[test]
fn found_inputs_are_survived() {
    // A request whose WAL would have ended beyond the last position there is.
    harness::run(&[0xff; 21]);
}
