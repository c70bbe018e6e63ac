//! wharf-telemetry
