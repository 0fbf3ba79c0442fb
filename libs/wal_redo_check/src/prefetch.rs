//! Asking the processor for memory before it is needed.

/// Bytes that come together.
const LINE: usize = 64;

/// Asks for all of `bytes`. Other processors than those known here are not asked.
#[inline]
pub fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction changes nothing that a program can see, whatever the address; each processor of this
        // architecture has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes.chunks(LINE);
}
