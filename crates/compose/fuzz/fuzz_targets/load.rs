//! Folders of Compose files out of bytes, and what must hold of the answer: the check is that of the test suite.

#![no_main]

#[path = "../../tests/fuzz/case.rs"]
mod case;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    case::check(input);
});
