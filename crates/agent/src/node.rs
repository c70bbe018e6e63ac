//! Ties the node together: assignments in, networks, volumes and task loops at work, reports out.
