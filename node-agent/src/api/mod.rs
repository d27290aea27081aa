//! The workload socket.
