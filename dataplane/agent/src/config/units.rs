//! Numbers with units, as a person writes them: `"10MB/s"`, `"64MiB"`, `"50us"`. Plain integers mean bytes,
//! bytes per second and nanoseconds.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A size in bytes: `"4096"`, `"64kB"`, `"2MiB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A rate in bytes per second: `"10MB/s"`, `"1GiB/s"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRate(pub u64);

/// A time: `"200ns"`, `"50us"`, `"1ms"`, `"2s"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nanos(pub u64);

const SIZES: &[(&str, u64)] = &[
    ("", 1),
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

const TIMES: &[(&str, u64)] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

/// A number, with a decimal part if it has a unit, times its unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    let number = number.replace('_', "");
    let (whole, part) = number.split_once('.').unwrap_or((&number, ""));
    let whole: u64 = whole.parse().ok()?;
    let mut value = whole.checked_mul(factor)?;
    if !part.is_empty() {
        let scale = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
        let part: u64 = part.parse().ok()?;
        let part = u128::from(part) * u128::from(factor) / u128::from(scale);
        value = value.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(value)
}

impl Bytes {
    /// Reads a size as a person writes it; `None` if it is none.
    pub fn parse(text: &str) -> Option<Bytes> {
        parse(text, SIZES).map(Bytes)
    }
}

impl ByteRate {
    fn parse(text: &str) -> Option<ByteRate> {
        let text = text.trim();
        parse(text.strip_suffix("/s").unwrap_or(text), SIZES).map(ByteRate)
    }
}

impl Nanos {
    fn parse(text: &str) -> Option<Nanos> {
        parse(text, TIMES).map(Nanos)
    }
}

struct Quantity<T> {
    expected: &'static str,
    text: fn(&str) -> Option<T>,
    number: fn(u64) -> T,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).ok_or_else(|| E::custom(format!("\"{text}\" is not {}", self.expected)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number)
            .map(self.number)
            .map_err(|_| E::custom(format!("{number} is negative; expected {}", self.expected)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        Ok((self.number)(number))
    }
}

macro_rules! quantity {
    ($name:ident, $expected:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let expected = $expected;
                deserializer.deserialize_any(Quantity { expected, text: $name::parse, number: $name })
            }
        }
    };
}

quantity!(Bytes, "a size such as \"64MiB\" or \"10kB\"");
quantity!(ByteRate, "a rate such as \"10MB/s\" or \"1GiB/s\"");
quantity!(Nanos, "a time such as \"50us\" or \"1ms\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rates_and_times_are_read_with_their_units() {
        assert_eq!(Bytes::parse("64MiB"), Some(Bytes(64 << 20)));
        assert_eq!(Bytes::parse("1.5 kB"), Some(Bytes(1500)));
        assert_eq!(Bytes::parse("4_096"), Some(Bytes(4096)));
        assert_eq!(ByteRate::parse("10MB/s"), Some(ByteRate(10_000_000)));
        assert_eq!(ByteRate::parse("0.1B/s"), Some(ByteRate(0)));
        assert_eq!(Nanos::parse("50us"), Some(Nanos(50_000)));
        assert_eq!(Nanos::parse("0.25ms"), Some(Nanos(250_000)));
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in
            ["", "MB", "-1", "1e9", "10 parsecs", "1.2.3MB", "99999999999TiB", "1.99999999999999999999999MB"]
        {
            assert_eq!(Bytes::parse(text), None, "{text}");
        }
        for text in ["5", "5 h", "ms", "999999999999999s"] {
            assert_eq!(Nanos::parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9._ ]{0,24}[a-zA-Z/]{0,5}") {
            let _ = (Bytes::parse(&text), ByteRate::parse(&text), Nanos::parse(&text));
        }

        #[test]
        fn whole_numbers_are_multiplied_exactly(number in 0..1_u64 << 20, unit in 0..SIZES.len()) {
            let (name, factor) = SIZES[unit];
            assert_eq!(Bytes::parse(&format!("{number}{name}")), Some(Bytes(number * factor)));
            assert_eq!(ByteRate::parse(&format!("{number} {name}/s")), Some(ByteRate(number * factor)));
        }
    }
}
