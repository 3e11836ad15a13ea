//! Nodes for tests, from Debian packages, in namespaces of their own.
