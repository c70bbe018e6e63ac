//! wharf-agent
