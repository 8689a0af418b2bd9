//! Two ends in one process, joined by two rings.
