//! The rotation law.
