//! System calls that the standard library and nix lack, behind safe types.
