//! The checkpoint image: format, layers, registry.
