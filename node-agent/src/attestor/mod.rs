//! Attestors: who a local process is.
