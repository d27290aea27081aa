//! Objects out of what an API server sends, as its bytes come in: the items of a list, the events of a watch. Pure.
//!
//! - Of what comes in no more than one object is held, and no more of that than [`MOST_BYTES`]: a node's pods are whoever
//!   may create pods, and each may have made them as large as an API server lets him.
//! - An object that is larger is passed over, and said to have been; the others do not suffer.
//! - What stands around the items of a list is kept as the list without them, up to [`MOST_AROUND`].

/// An API server stores no object over 1.5 MiB, and six times that is the longest way to write one.
pub(super) const MOST_BYTES: usize = 9 << 20;
/// Of a list without its items: a version and where it goes on.
const MOST_AROUND: usize = 64 << 10;

/// What takes objects out of bytes.
#[derive(Debug)]
pub(super) struct Splitter {
    /// How deep objects begin; `None`: the items of the list have not begun, or have ended.
    base: Option<usize>,
    is_list: bool,
    most: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    object: Vec<u8>,
    is_too_large: bool,
    around: Vec<u8>,
}

/// An object, or in its place that it was too large.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Its JSON.
    Object(Vec<u8>),
    /// It was passed over.
    TooLarge,
}

/// What came is not what an API server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it sends is neither a list nor a watch")]
pub(super) struct Malformed;

impl Splitter {
    /// For a list.
    pub(super) fn list() -> Self {
        Self { base: None, is_list: true, ..Self::one_by_one(MOST_BYTES) }
    }

    /// For objects one after another, as in a watch, none larger than `most` bytes.
    pub(super) fn one_by_one(most: usize) -> Self {
        Self {
            base: Some(0),
            is_list: false,
            most,
            depth: 0,
            in_string: false,
            is_escaped: false,
            object: Vec::new(),
            is_too_large: false,
            around: Vec::new(),
        }
    }

    /// The next object in `bytes`, of which what has been looked at is taken away; `None`: all of it has been.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Piece>, Malformed> {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.in_string {
                self.pass_string(bytes)?;
                continue;
            }
            *bytes = rest;
            match byte {
                b'[' if self.base.is_none() && self.depth == 1 && self.is_at_items() => {
                    self.keep(b"[")?;
                    (self.base, self.depth) = (Some(2), 2);
                }
                b'{' | b'[' => {
                    self.depth += 1;
                    self.keep(&[*byte])?;
                }
                b'}' | b']' if self.base == Some(self.depth) => {
                    if !self.is_list {
                        return Err(Malformed);
                    }
                    // The end of the items.
                    (self.base, self.depth) = (None, 1);
                    self.keep(b"]")?;
                }
                b'}' | b']' => {
                    self.keep(&[*byte])?;
                    self.depth = self.depth.checked_sub(1).ok_or(Malformed)?;
                    if self.base == Some(self.depth) {
                        return Ok(Some(self.piece()));
                    }
                }
                b',' | b' ' | b'\n' | b'\r' | b'\t' if self.base == Some(self.depth) => {}
                byte => {
                    self.in_string = *byte == b'"';
                    self.keep(&[*byte])?;
                }
            }
        }
        Ok(None)
    }

    /// The list without its items, once it is whole.
    pub(super) fn around(&self) -> Option<&[u8]> {
        (self.depth == 0 && !self.in_string).then_some(&self.around)
    }

    /// Keeps what of `bytes` belongs to the string that it begins in.
    fn pass_string(&mut self, bytes: &mut &[u8]) -> Result<(), Malformed> {
        let plain = if self.is_escaped { 0 } else { bytes.iter().take_while(|byte| !b"\"\\".contains(byte)).count() };
        let (text, rest) = bytes.split_at(plain);
        self.keep(text)?;
        *bytes = rest;
        if let Some((byte, rest)) = rest.split_first() {
            self.keep(&[*byte])?;
            *bytes = rest;
            self.in_string = self.is_escaped || *byte != b'"';
            self.is_escaped = !self.is_escaped && *byte == b'\\';
        }
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        if self.base.is_some_and(|base| self.depth > base) {
            if self.object.len() + bytes.len() > self.most {
                self.is_too_large = true;
                self.object = Vec::new();
            }
            if !self.is_too_large {
                self.object.extend_from_slice(bytes);
            }
            return Ok(());
        }
        // Between objects there is nothing; around a list, not much.
        if !self.is_list || self.around.len() + bytes.len() > MOST_AROUND {
            return Err(Malformed);
        }
        self.around.extend_from_slice(bytes);
        Ok(())
    }

    fn piece(&mut self) -> Piece {
        let object = std::mem::take(&mut self.object);
        if std::mem::take(&mut self.is_too_large) { Piece::TooLarge } else { Piece::Object(object) }
    }

    /// Whether what came last is the key of the items.
    fn is_at_items(&self) -> bool {
        let key = self.around.trim_ascii_end().strip_suffix(b":");
        key.is_some_and(|before| before.trim_ascii_end().ends_with(b"\"items\""))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What comes out of `text` in chunks of `size`.
    fn split(mut splitter: Splitter, text: &[u8], size: usize) -> Result<(Vec<Piece>, Splitter), Malformed> {
        let mut pieces = Vec::new();
        for mut chunk in text.chunks(size) {
            while let Some(piece) = splitter.next(&mut chunk)? {
                pieces.push(piece);
            }
        }
        Ok((pieces, splitter))
    }

    fn objects(pieces: &[Piece]) -> Vec<Value> {
        let parse = |piece: &Piece| match piece {
            Piece::Object(bytes) => serde_json::from_slice(bytes).unwrap(),
            Piece::TooLarge => json!("too large"),
        };
        pieces.iter().map(parse).collect()
    }

    #[test]
    fn a_list_falls_into_its_items_and_what_is_around_them() {
        let text = br#" {"kind":"PodList","metadata":{"resourceVersion":"7","items":["no"]}, "items" : [
            {"a":"}],{\"items\":[\\"}, {"items":[{"b":[1]}]} ],"more":[1]}"#;
        for size in 1..text.len() {
            let (pieces, splitter) = split(Splitter::list(), text, size).unwrap();
            assert_eq!(objects(&pieces), [json!({"a": "}],{\"items\":[\\"}), json!({"items": [{"b": [1]}]})]);
            let around: Value = serde_json::from_slice(splitter.around().unwrap()).unwrap();
            let meta = json!({"resourceVersion": "7", "items": ["no"]});
            assert_eq!(around, json!({"kind": "PodList", "metadata": meta, "items": [], "more": [1]}));
        }
        let (_, cut_off) = split(Splitter::list(), &text[..text.len() - 1], 7).unwrap();
        assert_eq!(cut_off.around(), None);
    }

    #[test]
    fn however_large_an_object_is_only_so_much_is_held_and_the_others_come() {
        let text = format!("{{\"a\":1}}\n{{\"a\":\"{}\"}}\n{{\"a\":2}}\n", "x".repeat(10_000));
        let mut splitter = Splitter::one_by_one(100);
        let mut pieces = Vec::new();
        for mut chunk in text.as_bytes().chunks(64) {
            while let Some(piece) = splitter.next(&mut chunk).unwrap() {
                pieces.push(piece);
            }
            assert!(splitter.object.capacity() <= 256);
        }
        assert_eq!(objects(&pieces), [json!({"a": 1}), json!("too large"), json!({"a": 2})]);
        let text = format!("{{\"metadata\":\"{}", "x".repeat(MOST_AROUND));
        assert_eq!(split(Splitter::list(), text.as_bytes(), 4096).err(), Some(Malformed));
        for text in ["<html>", "]", "{}}"] {
            assert_eq!(split(Splitter::one_by_one(100), text.as_bytes(), 1).err(), Some(Malformed), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_together_comes_apart(
            texts in prop::collection::vec("[a-z\"\\\\{}\\[\\],:]{0,8}", 0..6), size in 1..40usize,
        ) {
            let items: Vec<Value> = texts.iter().map(|text| json!({text: [text, {"x": text}]})).collect();
            let list = json!({"metadata": {"continue": texts.concat()}, "items": items}).to_string();
            let (pieces, splitter) = split(Splitter::list(), list.as_bytes(), size).unwrap();
            prop_assert_eq!(objects(&pieces), items.clone());
            prop_assert!(splitter.around().is_some());
            let watch: String = items.iter().map(|item| format!("{item}\n")).collect();
            let (pieces, _) = split(Splitter::one_by_one(MOST_BYTES), watch.as_bytes(), size).unwrap();
            prop_assert_eq!(objects(&pieces), items);
        }

        #[test]
        fn nothing_that_comes_in_breaks_it(bytes: Vec<u8>, size in 1..40usize) {
            let _ = split(Splitter::list(), &bytes, size);
            let _ = split(Splitter::one_by_one(16), &bytes, size);
        }
    }
}
