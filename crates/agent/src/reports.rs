//! The latest report of the node and of each task, for every server that listens.
