//! The kernel side of the node's networks: VXLAN ports, forwarding and neighbour entries.
