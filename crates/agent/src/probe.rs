//! Asks a task from the outside, over its network address, whether it serves.
