//! Words to the user. A closed standard output, as of `neon_local … | head -1`, must not stop the work.

use std::fmt::Arguments;
use std::io::Write;

/// Prints without a line end, and at once; whether anybody reads it does not matter.
pub fn text(words: Arguments<'_>) {
    let mut stdout = std::io::stdout();
    let _nobody_reads = stdout.write_fmt(words).and_then(|()| stdout.flush());
}

/// Prints a line like `println!`, but survives a reader who has gone.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::output::text(format_args!("{}\n", format_args!($($words)*)))
    };
}

/// Prints like `print!`, at once, and survives a reader who has gone.
macro_rules! say_part {
    ($($words:tt)*) => {
        $crate::output::text(format_args!($($words)*))
    };
}

pub(crate) use {say, say_part};
