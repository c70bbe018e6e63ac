//! The assignment set that the node holds: accepted, kept on disk, and refused when it is older.
