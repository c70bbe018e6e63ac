//! wharf-process
