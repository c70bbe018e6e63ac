//! One loop per task: what to do next, and doing it.
