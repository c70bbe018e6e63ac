//! wharf-model
