//! The configuration of a policy: pairs of texts that belong to its version.

use std::str::FromStr;

/// Pairs that were given and not yet taken.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Config {
    /// Of these pairs.
    pub fn new(pairs: Vec<(String, String)>) -> Config {
        Config { pairs, known: Vec::new() }
    }

    /// The value of a key, or what it is without being configured.
    pub fn take<T: FromStr>(&mut self, key: &'static str, otherwise: T) -> Result<T, String> {
        self.known.push(key);
        let Some(at) = self.pairs.iter().position(|(name, _)| name == key) else { return Ok(otherwise) };
        let (_, value) = self.pairs.swap_remove(at);
        value.parse().map_err(|_| format!("`{key} = {value}` is not a value of this key"))
    }

    /// Refuses what no key has taken.
    pub fn finish(self) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) if self.known.is_empty() => {
                Err(format!("`{key}` is set, but this policy has no keys"))
            }
            Some((key, _)) => Err(format!("there is no key `{key}`; there are: {}", self.known.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn keys_are_taken_or_refused() {
        let mut config = Config::new(vec![("ttl-ms".into(), "7".into()), ("ttl".into(), "8".into())]);
        assert_eq!(config.take("ttl-ms", 1_u32), Ok(7));
        assert_eq!(config.take("floor-ppm", 5_u32), Ok(5));
        assert_eq!(config.finish().unwrap_err(), "there is no key `ttl`; there are: ttl-ms, floor-ppm");
        let mut config = Config::new(vec![("ttl-ms".into(), "-7".into())]);
        assert_eq!(config.take("ttl-ms", 1_u32).unwrap_err(), "`ttl-ms = -7` is not a value of this key");
    }
}
