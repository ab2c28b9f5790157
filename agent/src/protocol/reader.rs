//! Reads captured bytes with bounds checked.
