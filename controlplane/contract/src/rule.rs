//! Rules of a tenant's network, as people write them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A rule of a tenant's network; words as in `[[rule]]` of `dataplane.toml`. Every node that carries the tenant's
/// network has it, beside those of its own file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// An address, a prefix or a MAC.
    pub to: String,
    /// tcp or udp; none = any.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Destination port; none = any.
    #[serde(default)]
    pub port: Option<u16>,
    /// What is done.
    pub action: Action,
    /// Tunnel endpoint, with forward.
    #[serde(default)]
    pub vtep: Option<String>,
}

/// Transport that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Into the tunnel.
    Forward,
    /// Away.
    Drop,
    /// To the trap port of the node.
    Trap,
}

impl Rule {
    /// What is wrong with rules of one tenant, wherever they are carried out.
    pub fn check(rules: &[Rule]) -> Result<(), String> {
        let mut seen = std::collections::BTreeMap::new();
        for (number, rule) in rules.iter().enumerate() {
            let place = || format!("rule {} (to \"{}\")", number + 1, rule.to);
            rule.check_one().map_err(|why| format!("{}: {why}", place()))?;
            let key = (rule.to.as_str(), rule.protocol.map(|protocol| protocol as u8), rule.port);
            if let Some(first) = seen.insert(key, number) {
                return Err(format!("{}: rule {} decides about the same packets", place(), first + 1));
            }
        }
        Ok(())
    }

    fn check_one(&self) -> Result<(), String> {
        let is_mac = is_mac(&self.to);
        if !is_mac && !is_prefix(&self.to) {
            return Err("write an address, a prefix such as \"10.0.0.0/24\" whose other bits are 0, or the MAC address of \
                        one station"
                .into());
        }
        if is_mac && (self.protocol.is_some() || self.port.is_some()) {
            return Err("a rule about a MAC address has neither protocol nor port".into());
        }
        match (self.action, &self.vtep) {
            (Action::Forward, None) => Err("forward needs a vtep".into()),
            (Action::Forward, Some(text)) => {
                let is_vtep = text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok();
                let says = || format!("\"{text}\" is not a tunnel endpoint such as \"192.0.2.2\"");
                if is_vtep { Ok(()) } else { Err(says()) }
            }
            (Action::Drop | Action::Trap, None) => Ok(()),
            (Action::Drop | Action::Trap, Some(_)) => Err("only forward takes a vtep".into()),
        }
    }
}

/// Of one station: the lowest bit of the first octet would make it a group's.
fn is_mac(text: &str) -> bool {
    let octet = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    octets.is_some_and(|octets| octets.len() == 6 && octets[0] & 1 == 0)
}

fn is_prefix(text: &str) -> bool {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let (value, most) = match address.parse() {
        Ok(IpAddr::V4(address)) => (u128::from(address.to_bits()), 32),
        Ok(IpAddr::V6(address)) => (address.to_bits(), 128),
        Err(_) => return false,
    };
    let bits = bits.map_or(Some(most), |bits| bits.parse::<u32>().ok().filter(|bits| *bits <= most));
    bits.is_some_and(|bits| value.checked_shl(128 - (most - bits)).unwrap_or(0) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(to: &str, action: Action) -> Rule {
        Rule { to: to.into(), protocol: None, port: None, action, vtep: None }
    }

    #[test]
    fn rules_that_cannot_be_right_are_refused_with_what_to_do() {
        let both = Rule { protocol: Some(Protocol::Tcp), port: Some(1), ..rule("10.0.0.1", Action::Drop) };
        let way = Rule { vtep: Some("192.0.2.2:4790".into()), ..rule("2001:db8::/64", Action::Forward) };
        let right = [both.clone(), way.clone(), rule("02:00:00:00:00:01", Action::Trap)];
        assert_eq!(Rule::check(&right), Ok(()));
        let wrong: &[(Rule, &str)] = &[
            (rule("10.0.0", Action::Drop), "write an address"),
            (rule("10.0.0.0/33", Action::Drop), "write an address"),
            (rule("10.0.0.1/24", Action::Drop), "write an address"),
            (rule("2001:db8::1/127", Action::Drop), "write an address"),
            (rule("01:00:5e:00:00:01", Action::Drop), "write an address"),
            (Rule { to: "02:00:00:00:00:02".into(), ..both.clone() }, "neither protocol nor port"),
            (rule("10.0.0.2", Action::Forward), "forward needs a vtep"),
            (Rule { vtep: Some("nowhere".into()), ..way.clone() }, "not a tunnel endpoint"),
            (Rule { action: Action::Drop, ..way.clone() }, "only forward takes a vtep"),
            (way.clone(), "rule 2 decides about the same packets"),
        ];
        for (rule, says) in wrong {
            let why = Rule::check(&[both.clone(), way.clone(), rule.clone()]).expect_err("it is wrong");
            assert!(why.starts_with("rule 3 ") && why.contains(says), "{why}");
        }
    }
}
