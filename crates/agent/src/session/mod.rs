//! The connections to the servers, over which they call this node.
