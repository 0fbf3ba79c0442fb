//! `wal_redo_check`: replays WAL natively and compares every page with the image that
//! `wal_consistency_checking` put into the record.
//!
//! Exit status: 0 if every compared page was equal and every record known; 1 if not; 2 if the check could
//! not be made.

use std::process::ExitCode;

use clap::Parser;
use wal_redo_check::{Options, check};

fn main() -> ExitCode {
    let options = Options::parse();
    match check(&options) {
        Ok(report) => {
            if options.json {
                println!("{}", report.to_json());
            } else {
                print!("{}", report.to_text());
            }
            if report.passed() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            }
        }
        Err(error) => {
            eprintln!("wal_redo_check: {error:#}");
            ExitCode::from(2)
        }
    }
}
