//! How bytes travel between the parts: TLS, HTTP/2 in both directions, frames.
