//! CRIU as a library: swrk driver, image files, translated errors.

pub mod images;
