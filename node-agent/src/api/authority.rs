//! Lets clients in that name the socket's path as `:authority`, as gRPC's C core does (Python, C++, Ruby, PHP) and
//! Java: `tmp%2Fagent.sock` is no authority of RFC 3986, so that h2 would refuse the request (hyperium/h2, PR 487).
//! On a unix socket the name means nothing to anybody, and any name will do.
//!
//! - Only the value of a literal `:authority` is touched: each byte that no host name has becomes a dash, a colon too
//!   (it stands before a port, or in a path). No length changes, so neither the frames nor the tables of HPACK do.
//! - Of a Huffman-coded value each byte becomes that of the letter X, which has eight bits there: it cannot be seen in
//!   one byte what the name is, and any name will do.
//! - Byte for byte, with no buffer: a name that is cut into many reads and frames is the same name.
//! - What is no HTTP/2 passes as it came, for h2 to refuse.
//! - RFC 9113 section 4.1 (frames) and 6.2 (HEADERS), RFC 7541 section 6 (representations) and appendix B (Huffman code).

const PREFACE_BYTES: u32 = 24;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const NAME: &[u8] = b":authority";
/// The same, Huffman-coded.
const CODED_NAME: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];
/// The letter X, Huffman-coded.
const CODED_X: u8 = 0xfc;
/// Of `:authority` in the static table of HPACK.
const NAME_INDEX: u32 = 1;

/// Where one connection's incoming bytes have got to.
#[derive(Debug)]
pub struct Authorities {
    frame: Frame,
    fields: Fields,
}

#[derive(Debug)]
enum Frame {
    Preface {
        left: u32,
    },
    Head {
        bytes: [u8; 9],
        have: usize,
    },
    /// `pad`: the length of the padding is to come; `skip`: bytes before the fields; `left`: of the whole payload.
    Body {
        is_fields: bool,
        pad: bool,
        skip: u32,
        padding: u32,
        left: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fields {
    /// At the first byte of a representation.
    Start,
    /// In an integer whose first byte is behind us.
    Integer { value: u32, shift: u32, then: Then },
    /// At the first byte of a string's length.
    Length { of: Text },
    /// In a name; `rest` of `:authority` is to come, or it is another one (`None`).
    Name { left: u32, rest: Option<&'static [u8]> },
    /// In a value.
    Value { left: u32, rewrite: Rewrite },
}

/// What becomes of the bytes of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rewrite {
    Nothing,
    Text,
    HuffmanCode,
}

/// What an integer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// A whole representation.
    Nothing,
    /// The index of a literal's name; 0: the name follows.
    NameIndex,
    /// The length of a string.
    Length { of: Text, huffman: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Name,
    Value { of_authority: bool },
}

impl Default for Authorities {
    fn default() -> Self {
        Self { frame: Frame::Preface { left: PREFACE_BYTES }, fields: Fields::Start }
    }
}

impl Authorities {
    /// Takes the next bytes of the connection, and changes them where that is needed.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.step(byte);
        }
    }

    fn step(&mut self, byte: &mut u8) {
        match &mut self.frame {
            Frame::Preface { left } => {
                *left -= 1;
                if *left == 0 {
                    self.frame = Frame::next();
                }
            }
            Frame::Head { bytes, have } => {
                if let Some(place) = bytes.get_mut(*have) {
                    *place = *byte;
                }
                *have += 1;
                if *have == bytes.len() {
                    let bytes = *bytes;
                    self.begin(bytes);
                }
            }
            Frame::Body { is_fields, pad, skip, padding, left } => {
                *left -= 1;
                let is_field = if std::mem::take(pad) {
                    *padding = u32::from(*byte);
                    false
                } else if *skip > 0 {
                    *skip -= 1;
                    false
                } else {
                    *is_fields && *left >= *padding
                };
                if *left == 0 {
                    self.frame = Frame::next();
                }
                if is_field {
                    self.fields = self.fields.step(byte);
                }
            }
        }
    }

    fn begin(&mut self, [high, middle, low, kind, flags, ..]: [u8; 9]) {
        let left = u32::from_be_bytes([0, high, middle, low]);
        if kind == HEADERS {
            self.fields = Fields::Start;
        }
        let is = |flag: u8| kind == HEADERS && flags & flag != 0;
        let skip = if is(PRIORITY) { 5 } else { 0 };
        let is_fields = kind == HEADERS || kind == CONTINUATION;
        self.frame = match left {
            0 => Frame::next(),
            _ => Frame::Body { is_fields, pad: is(PADDED), skip, padding: 0, left },
        };
    }
}

impl Frame {
    fn next() -> Self {
        Self::Head { bytes: [0; 9], have: 0 }
    }
}

impl Fields {
    fn step(self, byte: &mut u8) -> Self {
        match self {
            Self::Start => match *byte {
                byte if byte & 0x80 != 0 => Self::integer(byte, 7, Then::Nothing),
                byte if byte & 0x40 != 0 => Self::integer(byte, 6, Then::NameIndex),
                byte if byte & 0x20 != 0 => Self::integer(byte, 5, Then::Nothing),
                byte => Self::integer(byte, 4, Then::NameIndex),
            },
            Self::Integer { value, shift, then } => {
                let more = u32::from(*byte & 0x7f).checked_shl(shift).unwrap_or(u32::MAX);
                let value = value.saturating_add(more);
                match *byte & 0x80 {
                    0 => Self::after(value, then),
                    _ => Self::Integer { value, shift: shift.saturating_add(7), then },
                }
            }
            Self::Length { of } => Self::integer(*byte, 7, Then::Length { of, huffman: *byte & 0x80 != 0 }),
            Self::Name { left, rest } => {
                let rest = rest.and_then(<[u8]>::split_first).filter(|(next, _)| *next == byte).map(|(_, rest)| rest);
                match left {
                    0 | 1 => Self::Length { of: Text::Value { of_authority: rest == Some(&[]) } },
                    _ => Self::Name { left: left - 1, rest },
                }
            }
            Self::Value { left, rewrite } => {
                match rewrite {
                    Rewrite::Nothing => {}
                    Rewrite::Text if byte.is_ascii_alphanumeric() || *byte == b'.' => {}
                    Rewrite::Text => *byte = b'-',
                    Rewrite::HuffmanCode => *byte = CODED_X,
                }
                match left {
                    0 | 1 => Self::Start,
                    _ => Self::Value { left: left - 1, rewrite },
                }
            }
        }
    }

    /// An integer whose prefix has `bits` bits (RFC 7541 section 5.1).
    fn integer(byte: u8, bits: u32, then: Then) -> Self {
        let most = (1_u32 << bits) - 1;
        match u32::from(byte) & most {
            value if value < most => Self::after(value, then),
            value => Self::Integer { value, shift: 0, then },
        }
    }

    fn after(value: u32, then: Then) -> Self {
        match then {
            Then::Nothing => Self::Start,
            Then::NameIndex if value == 0 => Self::Length { of: Text::Name },
            Then::NameIndex => Self::Length { of: Text::Value { of_authority: value == NAME_INDEX } },
            Then::Length { of: Text::Name, .. } if value == 0 => {
                Self::Length { of: Text::Value { of_authority: false } }
            }
            Then::Length { of: Text::Name, huffman } => {
                Self::Name { left: value, rest: Some(if huffman { CODED_NAME } else { NAME }) }
            }
            Then::Length { of: Text::Value { .. }, .. } if value == 0 => Self::Start,
            Then::Length { of: Text::Value { of_authority }, huffman } => {
                let rewrite = match (of_authority, huffman) {
                    (false, _) => Rewrite::Nothing,
                    (true, false) => Rewrite::Text,
                    (true, true) => Rewrite::HuffmanCode,
                };
                Self::Value { left: value, rewrite }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        let length = text.len();
        let head = if length < 127 { vec![length as u8] } else { vec![127, (length - 127) as u8] };
        [&head, text.as_bytes()].concat()
    }

    /// Passes `sent` in reads of `at_once` bytes.
    fn passed(sent: &[u8], at_once: usize) -> Vec<u8> {
        let mut bytes = sent.to_vec();
        let mut authorities = Authorities::default();
        bytes.chunks_mut(at_once).for_each(|chunk| authorities.pass(chunk));
        bytes
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    #[test]
    fn the_path_of_a_socket_becomes_a_name_of_the_same_length() {
        let long = format!("{}.sock", "a%2F".repeat(40));
        for path in ["tmp%2Fchancery%2Fagent.sock", "/run/chancery/agent.sock", &long] {
            let fields = |authority: &str| {
                let path = [vec![0x40], text(":path"), text("/a%2Fb/c")].concat();
                let by_name = [vec![0x40], text(":authority"), text(authority)].concat();
                let by_index = [vec![0x41], text(authority)].concat();
                let never = [vec![0x11], text(authority)].concat();
                [&[0x83, 0x3f, 0xe1, 0x1f][..], &path, &by_name, &by_index, &never, &[0x40], &text("te"), &text("%")]
                    .concat()
            };
            let stream = |authority: &str| {
                let fields = fields(authority);
                let (one, two) = fields.split_at(fields.len() / 2);
                let padded = [&[3, 0, 0, 0, 0, 16][..], one, b"%%%"].concat();
                [
                    PREFACE.to_vec(),
                    frame(4, 0, &[]),
                    frame(0, 0, b"A\x0d/not%2Ffields"),
                    frame(HEADERS, PADDED | PRIORITY, &padded),
                    frame(CONTINUATION, 4, two),
                    frame(0, 1, b"\0\0\0\0\0"),
                    frame(HEADERS, 4, &fields),
                ]
                .concat()
            };
            let expected = stream(&path.replace(['%', '/'], "-"));
            for at_once in [1, 2, 7, 1 << 20] {
                assert_eq!(passed(&stream(path), at_once), expected, "{path} in reads of {at_once}");
            }
        }
    }

    #[test]
    fn what_h2_takes_stays_as_it_is() {
        for authority in ["localhost", "127.0.0.1", ""] {
            let sent = [PREFACE, &frame(HEADERS, 4, &[vec![0x41], text(authority)].concat())].concat();
            assert_eq!(passed(&sent, 5), sent);
        }
    }

    #[test]
    fn whatever_a_client_calls_the_socket_is_a_name_that_h2_takes() {
        for authority in
            ["[::1]:80", "127.0.0.1:80", "/run/a:b/agent.sock", "run%3Aagent.sock", "@abstract", ":", "\u{e9}"]
        {
            let sent = [PREFACE, &frame(HEADERS, 4, &[vec![0x41], text(authority)].concat())].concat();
            let got = passed(&sent, 3);
            let name = &got[got.len() - authority.len()..];
            http::uri::Authority::try_from(name).unwrap_or_else(|error| panic!("{authority}: {error}"));
        }
    }

    #[test]
    fn a_huffman_coded_name_is_one_that_h2_takes() {
        // "/a"
        let value = [0x82, 0x60, 0x7f];
        let name = [&[0x88], CODED_NAME].concat();
        for before in [vec![0x41], vec![0x01], [&[0x40], &name[..]].concat(), [vec![0x00], text(":authority")].concat()]
        {
            let stream = |value: &[u8]| {
                let path = [vec![0x40], text(":path"), vec![0x82, 0x60, 0x7f]].concat();
                [PREFACE, &frame(HEADERS, 4, &[&path, &before[..], value, &path].concat())].concat()
            };
            assert_eq!(passed(&stream(&value), 1), stream(&[0x82, CODED_X, CODED_X]));
        }
    }

    #[test]
    fn anything_at_all_passes_without_harm() {
        let mut seed = 1_u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u8
        };
        for _ in 0..200 {
            let noise: Vec<u8> = (0..512).map(|_| random()).collect();
            let sent = [PREFACE, &[0, 1, 0, HEADERS, 4, 0, 0, 0, 1], &noise].concat();
            for sent in [sent, noise] {
                let got = passed(&sent, 1);
                assert_eq!(got, passed(&sent, sent.len()), "however it is cut");
                assert!(
                    sent.iter().zip(&got).all(|(before, after)| before == after || [b'-', CODED_X].contains(after))
                );
            }
        }
    }
}
