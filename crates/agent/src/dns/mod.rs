//! Answers the DNS questions of the node's containers from the table that the server sent.
