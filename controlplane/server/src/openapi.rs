//! The routes, and the OpenAPI document that is made of them (version 3.1, <https://spec.openapis.org/oas/v3.1.0>).
//!
//! Invariant: a route is put into the router and into the document from the same [`Route`], so neither has one
//! that the other lacks (docs/decisions/060). `docs/openapi.json` is what this makes.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use axum::routing::{MethodRouter, get, post};
use axum::{Router, handler::Handler};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::RecursiveTransform;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::api::{Refusal, Shell};

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// One method of one path.
pub struct Route {
    path: &'static str,
    method: &'static str,
    handler: MethodRouter<Shell>,
    about: &'static str,
    asks: Option<SchemaOf>,
    headers: Vec<(&'static str, &'static str)>,
    takes: Option<(&'static str, SchemaOf)>,
    answers: (&'static str, SchemaOf),
    refuses: BTreeSet<u16>,
}

impl Route {
    /// Something to read; `{id}` and `{*id}` in its path stand for a name or an id.
    pub fn get<H: Handler<T, Shell>, T: 'static>(path: &'static str, handler: H) -> Route {
        Route::new("get", path, get(handler))
    }

    /// Something to do.
    pub fn post<H: Handler<T, Shell>, T: 'static>(path: &'static str, handler: H) -> Route {
        Route::new("post", path, post(handler))
    }

    fn new(method: &'static str, path: &'static str, handler: MethodRouter<Shell>) -> Route {
        // Whoever asks may lack a token, come by a foreign name, or at a bad time; and disks fail.
        let mut refuses = BTreeSet::from([401, 403, 500, 503]);
        if path.contains('{') {
            refuses.extend([400, 404]);
        }
        let (about, answers) = ("", ("application/json", schema_of::<Value> as SchemaOf));
        Route { path, method, handler, about, asks: None, headers: Vec::new(), takes: None, answers, refuses }
    }

    /// What it is for, one sentence.
    pub fn about(self, about: &'static str) -> Route {
        Route { about, ..self }
    }

    /// What may stand behind the question mark.
    pub fn asks<T: JsonSchema>(mut self) -> Route {
        self.refuses.insert(400);
        Route { asks: Some(schema_of::<T>), ..self }
    }

    /// A header that it looks at.
    pub fn header(mut self, name: &'static str, about: &'static str) -> Route {
        self.headers.push((name, about));
        self
    }

    /// The body that it takes, in JSON.
    pub fn takes<T: JsonSchema>(mut self) -> Route {
        self.refuses.extend([400, 413, 415, 422]);
        Route { takes: Some(("application/json", schema_of::<T>)), ..self }
    }

    /// It takes bytes.
    pub fn takes_bytes(mut self) -> Route {
        self.refuses.extend([400, 413, 422]);
        Route { takes: Some(("application/octet-stream", |_| Schema::default())), ..self }
    }

    /// What it answers, in JSON.
    pub fn answers<T: JsonSchema>(self) -> Route {
        Route { answers: ("application/json", schema_of::<T>), ..self }
    }

    /// It answers with server-sent events whose data are these, in JSON.
    pub fn streams<T: JsonSchema>(self) -> Route {
        Route { answers: ("text/event-stream", schema_of::<T>), ..self }
    }

    /// Other statuses with which it says no.
    pub fn refuses<const N: usize>(mut self, statuses: [StatusCode; N]) -> Route {
        self.refuses.extend(statuses.map(|status| status.as_u16()));
        self
    }

    fn operation(&self, generator: &mut SchemaGenerator) -> Value {
        let mut parameters = Vec::new();
        if self.path.contains('{') {
            parameters.push(json!({
                "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 },
            }));
        }
        if let Some(asks) = self.asks {
            parameters.extend(query(&asks(generator), generator));
        }
        for (name, about) in &self.headers {
            parameters.push(json!({
                "name": name, "in": "header", "description": about, "schema": { "type": "string" },
            }));
        }
        let (content, schema) = self.answers;
        let answer =
            json!({ "description": "Done", "content": { content: { "schema": schema(generator) } } });
        let mut responses = Map::from_iter([("200".to_owned(), answer)]);
        for status in &self.refuses {
            responses
                .insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{status}") }));
        }
        let mut operation = json!({ "summary": self.about, "responses": responses });
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some((content, schema)) = self.takes {
            operation["requestBody"] =
                json!({ "required": true, "content": { content: { "schema": schema(generator) } } });
        }
        operation
    }
}

/// Parameters from the fields of a structure.
fn query(schema: &Schema, generator: &SchemaGenerator) -> Vec<Value> {
    let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
    let found = name.and_then(|name| generator.definitions().get(name));
    let fields = found.and_then(|schema| schema.get("properties")).and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        // What stands there when it is left out is said in its description.
        let about = schema.as_object_mut().and_then(|schema| {
            schema.remove("default");
            schema.remove("description")
        });
        json!({ "name": name, "in": "query", "description": about, "schema": schema })
    };
    fields.into_iter().flatten().map(parameter).collect()
}

/// Says the largest value of a number of so many bits: programs know formats as hints only.
fn bounded(schema: &mut Schema) {
    let most = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => u64::from(u8::MAX),
        Some("uint16") => u64::from(u16::MAX),
        Some("uint32") => u64::from(u32::MAX),
        Some("uint64") => u64::MAX,
        _ => return,
    };
    schema.ensure_object().entry("maximum").or_insert_with(|| most.into());
}

/// A router of these routes and no others.
pub fn router(routes: Vec<Route>) -> Router<Shell> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}

/// The document of these routes.
pub fn document(routes: &[Route]) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    settings.transforms.push(Box::new(RecursiveTransform(bounded)));
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    let mut questions = BTreeSet::new();
    for route in routes {
        let path = route.path.replace("{*", "{");
        let operation = route.operation(&mut generator);
        if let Some(asks) = route.asks {
            let asked = asks(&mut generator);
            let name = asked.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
            questions.extend(name.map(str::to_owned));
        }
        let methods = paths.entry(path).or_insert_with(|| json!({}));
        methods[route.method] = operation;
    }
    let refusal = generator.subschema_for::<Refusal>();
    let refusal = |status: &u16| {
        let said = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        let no = json!({
            "description": said.unwrap_or_default(), "content": { "application/json": { "schema": &refusal } },
        });
        (status.to_string(), no)
    };
    let statuses: BTreeSet<u16> = routes.iter().flat_map(|route| &route.refuses).copied().collect();
    let responses: Map<String, Value> = statuses.iter().map(refusal).collect();
    let mut schemas = generator.take_definitions(true);
    // They are written out as parameters.
    schemas.retain(|name, _| !questions.contains(name));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate control plane",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{}, { "token": [] }],
        "paths": paths,
        "components": {
            "responses": responses,
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// The document as it is kept: sorted, indented, with a last newline.
pub fn text(document: &Value) -> String {
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    const KEPT: &str = include_str!("../../../docs/openapi.json");

    #[test]
    fn the_document_that_is_kept_is_what_the_routes_make() {
        let kept: Value = serde_json::from_str(KEPT).expect("JSON");
        assert!(
            document(&api::routes()) == kept,
            "docs/openapi.json is not of these routes: `cargo run -p server -- openapi > docs/openapi.json`"
        );
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(path)) = map.get("$ref") {
                        found.push(path.clone());
                    }
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(all) => all.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document(&api::routes());
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for path in found {
            let path = path.strip_prefix('#').expect("within the document");
            assert!(document.pointer(path).is_some(), "{path}");
        }
    }
}
