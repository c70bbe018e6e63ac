//! wharf-gateway
