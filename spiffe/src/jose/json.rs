//! JSON objects from outside: a member that occurs twice is refused at any depth, for nobody can say which of the two
//! the signer or the next reader means (RFC 8259 section 4, SPIFFE_Trust_Domain_and_Bundle.md section 6.3); and an array
//! is no object, although serde would read one as a struct.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Not an object, no JSON at all, or with a member twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object in which each member occurs once: {0}")]
pub struct JsonError(String);

/// Reads one JSON object, with nothing behind it. Its depth is bounded by serde_json (128), its size by the caller.
pub fn parse_object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match serde_json::from_slice(text) {
        Ok(Strict(Value::Object(object))) => Ok(object),
        Ok(_) => Err(JsonError("it is another kind of value".into())),
        Err(error) => Err(JsonError(error.to_string())),
    }
}

/// Reads a struct from an object alone.
pub(crate) struct ObjectOnly<D>(pub(crate) D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for ObjectOnly<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = sequence.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let Strict(value) = members.next_value()?;
            if object.contains_key(&name) {
                return Err(A::Error::custom(format_args!("member {name:?} occurs twice")));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_and_repeats_refused_at_any_depth() {
        let read = parse_object(br#"{"a": [1, -2, 1.5, null, true, "x"], "b": {"a": {}}}"#).unwrap();
        assert_eq!(Value::Object(read).to_string(), r#"{"a":[1,-2,1.5,null,true,"x"],"b":{"a":{}}}"#);
        for twice in [r#"{"a":1,"a":1}"#, r#"{"b":[{"a":1,"\u0061":2}]}"#] {
            let refused = parse_object(twice.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains("\"a\" occurs twice"), "{refused}");
        }
        for other in ["[]", "1", "", "{}{}", "{\"a\":}", "\"{}\""] {
            assert!(parse_object(other.as_bytes()).is_err(), "{other}");
        }
        assert!(parse_object("[".repeat(100_000).as_bytes()).is_err());
    }
}
