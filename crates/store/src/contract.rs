//! What every backend promises, as a suite of tests.
