//! The resource settings and the name of a traced service.
