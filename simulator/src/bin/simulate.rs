//! `simulate`: runs many seeds, and says which found a violation and how to see it again.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use simulator::{Report, TraceMode, run};

/// Runs the consensus protocol in virtual time under faults drawn from seeds.
#[derive(Debug, Parser)]
struct Args {
    /// Number of seeds
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Print everything that happens, on standard error
    #[arg(long)]
    trace: bool,
    /// Threads; as many as there are processors if not given
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Default)]
struct Totals {
    next: AtomicU64,
    violations: AtomicU64,
    elections: AtomicU64,
    events: AtomicU64,
    committed_bytes: AtomicU64,
}

impl Totals {
    fn add(&self, seed: u64, report: &Report) {
        self.elections.fetch_add(report.elections, Ordering::Relaxed);
        self.events.fetch_add(report.events, Ordering::Relaxed);
        self.committed_bytes
            .fetch_add(report.committed_bytes, Ordering::Relaxed);
        if let Some(violation) = &report.violation {
            self.violations.fetch_add(1, Ordering::Relaxed);
            println!("seed {seed}: {violation}");
            println!("  again: cargo run -p simulator --bin simulate -- --first-seed {seed} --trace");
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.trace {
        // Panics are violations, which are reported with their seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let mode = if args.trace {
        TraceMode::Print
    } else {
        TraceMode::Off
    };
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let totals = Totals::default();
    std::thread::scope(|scope| {
        for _ in 0..args.threads.unwrap_or(available) {
            scope.spawn(|| {
                loop {
                    let index = totals.next.fetch_add(1, Ordering::Relaxed);
                    if index >= args.seeds {
                        return;
                    }
                    let seed = args.first_seed + index;
                    totals.add(seed, &run(seed, mode));
                }
            });
        }
    });
    let violations = totals.violations.into_inner();
    println!(
        "{} events, {} elections, {} bytes committed",
        totals.events.into_inner(),
        totals.elections.into_inner(),
        totals.committed_bytes.into_inner()
    );
    println!("SEEDS {} VIOLATIONS {violations}", args.seeds);
    if violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
