//! JSON Schemas, as far as the document uses them: values that fit them, values that nearly do, and the check.

use serde_json::{Map, Value, json};
use tests::random::Random;

/// Names that are there, or will be.
const KNOWN: [&str; 8] = ["blue", "disk", "default", "one", "red", "leasing-pack-tight", "a", "9"];
/// Texts that are awkward.
const TEXTS: [&str; 8] =
    ["", "scheduling", "leasing", "é\u{202e}\u{0}", "../../etc/passwd", "{\"a\":\"b\"}", "volume/", "%00%ff"];

/// The document.
pub struct Schemas(pub Value);

impl Schemas {
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(path) => {
                let path = path.strip_prefix('#').expect("within the document");
                self.0.pointer(path).expect("it leads somewhere")
            }
            None => schema,
        }
    }

    /// Something that fits.
    pub fn make(&self, schema: &Value, random: &mut Random) -> Value {
        let schema = self.resolve(schema);
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        if let Some(all) = schema["enum"].as_array() {
            return random.pick(all).clone();
        }
        if let Some(all) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            return self.make(random.pick(all), random);
        }
        let kind = match &schema["type"] {
            Value::Array(all) => random.pick(all).as_str(),
            one => one.as_str(),
        };
        match kind {
            Some("object") => self.object(schema, random),
            Some("array") => match schema["prefixItems"].as_array() {
                Some(items) => items.iter().map(|item| self.make(item, random)).collect(),
                None => (0..random.below(4)).map(|_| self.make(&schema["items"], random)).collect(),
            },
            Some("string") => text(schema, random),
            Some("integer") => number(schema, random),
            Some("boolean") => random.chance(50).into(),
            Some("null") => Value::Null,
            _ => random.pick(&[json!(1), json!("x"), json!([]), json!({ "a": null })]).clone(),
        }
    }

    fn object(&self, schema: &Value, random: &mut Random) -> Value {
        let required = schema["required"].as_array();
        let must = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
        let mut made = Map::new();
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            if must(name) || random.chance(60) {
                made.insert(name.clone(), self.make(schema, random));
            }
        }
        made.into()
    }

    /// Why a value does not fit.
    pub fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = self.resolve(schema);
        if let Some(constant) = schema.get("const") {
            return hold(constant == value, || format!("{value} is not {constant}"));
        }
        if let Some(all) = schema["enum"].as_array() {
            return hold(all.contains(value), || format!("{value} is none of {all:?}"));
        }
        if let Some(all) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
            let fits = all.iter().any(|one| self.check(one, value).is_ok());
            return hold(fits, || format!("{value} is none of {} things", all.len()));
        }
        let is = |kind: &Value| match kind.as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("integer") => value.is_u64() || value.is_i64(),
            Some("boolean") => value.is_boolean(),
            Some("null") => value.is_null(),
            _ => true,
        };
        let right = match &schema["type"] {
            Value::Array(all) => all.iter().any(is),
            one => is(one),
        };
        hold(right, || format!("{value} is not of type {}", schema["type"]))?;
        match value {
            Value::Object(map) => self.check_object(schema, map),
            Value::Array(all) => {
                let prefix = schema["prefixItems"].as_array();
                all.iter().enumerate().try_for_each(|(at, one)| {
                    let item = prefix.and_then(|items| items.get(at)).unwrap_or(&schema["items"]);
                    self.check(item, one)
                })
            }
            Value::Number(_) => {
                let (least, most) = range(schema);
                let number = integer(value).expect("an integer");
                hold((least..=most).contains(&number), || format!("{value} is beyond its range"))
            }
            Value::String(text) if schema.get("pattern").is_some() => {
                hold(is_name(text), || format!("{text:?} is no name"))
            }
            _ => Ok(()),
        }
    }

    fn check_object(&self, schema: &Value, map: &Map<String, Value>) -> Result<(), String> {
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("a name");
            hold(map.contains_key(name), || format!("{name} is missing"))?;
        }
        for (name, value) in map {
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(schema), _) => self.check(schema, value).map_err(|why| format!("{name}: {why}"))?,
                (None, Value::Bool(false)) => return Err(format!("there is no {name}")),
                (None, Value::Null | Value::Bool(true)) => {}
                (None, others) => self.check(others, value).map_err(|why| format!("{name}: {why}"))?,
            }
        }
        Ok(())
    }
}

fn hold(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// The one pattern that the document has: that of names.
fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| good(byte) || b"-_.".contains(&byte))
        && good(text.as_bytes()[0])
}

fn text(schema: &Value, random: &mut Random) -> Value {
    if schema.get("pattern").is_some() || random.chance(50) {
        return (*random.pick(&KNOWN)).into();
    }
    if random.chance(10) { "x".repeat(1 + random.below(5_000)).into() } else { (*random.pick(&TEXTS)).into() }
}

fn integer(value: &Value) -> Option<i128> {
    value.as_u64().map(i128::from).or(value.as_i64().map(i128::from))
}

/// What a number may be.
fn range(schema: &Value) -> (i128, i128) {
    let (least, most) = match schema["format"].as_str() {
        Some("uint8") => (0, i128::from(u8::MAX)),
        Some("uint16") => (0, i128::from(u16::MAX)),
        Some("uint32") => (0, i128::from(u32::MAX)),
        Some("int64") => (i128::from(i64::MIN), i128::from(i64::MAX)),
        _ => (0, i128::from(u64::MAX)),
    };
    let said = |key: &str| integer(&schema[key]);
    (said("minimum").unwrap_or(least), said("maximum").unwrap_or(most))
}

fn number(schema: &Value, random: &mut Random) -> Value {
    let (least, most) = range(schema);
    let number = match random.below(6) {
        0 => least,
        1 => most,
        2 => least + random.any() as i128 % (most - least + 1),
        _ => random.below(6) as i128,
    };
    let number = number.clamp(least, most);
    u64::try_from(number).map_or_else(|_| json!(number as i64), |number| json!(number))
}

/// Makes one part of a value wrong, or leaves it as it is by chance.
pub fn spoil(value: &mut Value, random: &mut Random) {
    let deeper = random.chance(75);
    match value {
        Value::Object(map) if deeper && !map.is_empty() => {
            let at = random.below(map.len());
            spoil(map.values_mut().nth(at).expect("it is there"), random);
        }
        Value::Array(all) if deeper && !all.is_empty() => {
            let at = random.below(all.len());
            spoil(&mut all[at], random);
        }
        Value::Object(map) if random.chance(70) => match map.keys().next().cloned() {
            Some(first) if random.chance(50) => drop(map.remove(&first)),
            _ => drop(map.insert("surplus".to_owned(), json!(1))),
        },
        other => {
            let wrong = [
                json!(null),
                json!(-1),
                json!(u64::MAX),
                json!(1.5),
                json!("wrong"),
                json!(true),
                json!(["wrong"]),
                json!({ "wrong": 1 }),
                json!("x".repeat(100_000)),
                json!("\u{0}"),
            ];
            *other = random.pick(&wrong).clone();
        }
    }
}
