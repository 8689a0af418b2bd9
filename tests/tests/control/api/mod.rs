//! The outside of the control plane: every route of its OpenAPI document, and who may come in where.

mod doors;
mod fuzz;
pub mod http;
mod schema;
