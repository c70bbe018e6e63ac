//! Ties the node together: assignments in, networks, volumes and task loops at work, reports out.

/// The bridge of the network with this VXLAN identifier.
pub fn bridge_name(vni: u32) -> String {
    format!("wh{vni:x}")
}
