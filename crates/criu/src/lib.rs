//! CRIU as a library: swrk driver, image files, translated errors.
