//! The loader from outside: files in, an app and complaints out.

mod folder;
mod wordpress;
