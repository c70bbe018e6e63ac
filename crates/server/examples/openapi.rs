//! Prints the OpenAPI document; `cargo xtask openapi` writes it to where it is committed.

#[expect(clippy::print_stdout, reason = "printing is what it is for")]
fn main() {
    println!("{}", wharf_server::openapi_json());
}
