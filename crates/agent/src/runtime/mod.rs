//! What the agent needs of a container engine, behind a trait.
