//! Rules that a control plane gives the tenants of a file, beside the file's own.
//!
//! They stand behind the file's in the tables, tenant by tenant. What is wrong with them is the tenant's whose they are,
//! so that one tenant's mistake holds up no other ([`LowerError::Told`]).

use std::collections::HashMap;

use contract::{Rule, TenantRules};
use engine::overlay::{self, Tables};

use super::LowerError;
use super::file::{self, File};
use super::lower::{fits_socket, lower_rule, rule_place};
use super::names::Names;

/// Those of `told` whose tenants this node has, in the order of their rules.
fn here<'a>(
    file: &'a File,
    told: &'a [TenantRules],
) -> impl Iterator<Item = (&'a file::Tenant, &'a TenantRules)> {
    let tenants: HashMap<&str, &file::Tenant> =
        file.tenant.iter().map(|tenant| (tenant.name.as_str(), tenant)).collect();
    told.iter().filter_map(move |network| Some((*tenants.get(network.name.as_str())?, network)))
}

/// Adds the rules to a configuration that has the file's.
pub(super) fn add(
    file: &File,
    told: &[TenantRules],
    names: &mut Names,
    config: &mut overlay::Config,
) -> Result<(), LowerError> {
    for (keys, network) in here(file, told) {
        add_one(file, keys, network, names, config).map_err(|error| refused(network, error))?;
    }
    Ok(())
}

fn add_one(
    file: &File,
    keys: &file::Tenant,
    network: &TenantRules,
    names: &mut Names,
    config: &mut overlay::Config,
) -> Result<(), LowerError> {
    if let Some(vni) = network.vni.filter(|vni| *vni != keys.vni) {
        let what = format!("its vni is {vni} there and {} in this node's file; give both the same", keys.vni);
        return Err(LowerError::Key { place: format!("tenant \"{}\"", keys.name), what });
    }
    for (number, rule) in network.rules.iter().enumerate() {
        let place = rule_place(number, &rule.to);
        let lowered = lower_rule(file, &place, &as_in_file(network, rule), names)?;
        if let overlay::Action::Forward { vtep, .. } = lowered.action {
            let tenant = config.tenants.iter().find(|tenant| tenant.id == lowered.tenant);
            let port = tenant.and_then(|tenant| file.port.get(usize::from(tenant.underlay.0)));
            fits_socket(|| place.clone(), "vtep", vtep.ip, port.and_then(|port| port.listen))?;
        }
        config.rules.push(lowered);
    }
    Ok(())
}

fn as_in_file(network: &TenantRules, rule: &Rule) -> file::Rule {
    file::Rule {
        tenant: network.name.to_string(),
        to: rule.to.clone(),
        protocol: rule.protocol,
        port: rule.port,
        source_port: None,
        action: rule.action,
        vtep: rule.vtep.clone(),
        volume: None,
    }
}

/// Where the rule at a position of the tables goes.
pub(super) fn destination<'a>(file: &'a File, told: &'a [TenantRules], at: usize) -> Option<&'a str> {
    let told = here(file, told).flat_map(|(_, network)| network.rules.iter().map(|rule| rule.to.as_str()));
    file.rule.iter().map(|rule| rule.to.as_str()).chain(told).nth(at)
}

/// Whose told rules the overlay refuses beside the file's, which are in `base`: the first with whom it does. None: it
/// refuses the file.
pub(super) fn whose<'a>(
    file: &File,
    told: &'a [TenantRules],
    names: &Names,
    base: &overlay::Config,
    previous: Option<&Tables>,
) -> Option<&'a TenantRules> {
    let fails = |count: usize| {
        let (mut config, mut names) = (base.clone(), names.clone());
        let added = add(file, &told[..count], &mut names, &mut config);
        added.is_err() || Tables::build(&config, previous).is_err()
    };
    if fails(0) {
        return None;
    }
    // More rules mend nothing.
    let (mut right, mut wrong) = (0, told.len());
    while wrong - right > 1 {
        let middle = right.midpoint(wrong);
        *if fails(middle) { &mut wrong } else { &mut right } = middle;
    }
    told.get(wrong.checked_sub(1)?)
}

/// What is wrong with the rules of a tenant.
pub(super) fn refused(network: &TenantRules, error: LowerError) -> LowerError {
    LowerError::Told { tenant: network.tenant, name: network.name.to_string(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use contract::rule::Action;

    use super::super::tests::BASE;
    use super::super::{lower, parse};
    use super::*;

    /// Of the base's tenant, and another one.
    const MORE: &str = r#"
        [[tenant]]
        name = "green"
        vni = 200
        [[rule]]
        tenant = "blue"
        to = "10.0.0.3"
        action = "drop"
    "#;

    fn network(id: u64, name: &str, rules: &[(&str, Action)]) -> TenantRules {
        let rule = |(to, action): &(&str, Action)| {
            let vtep = (*action == Action::Forward).then(|| "127.0.0.2".to_owned());
            Rule { to: (*to).to_owned(), protocol: None, port: None, action: *action, vtep }
        };
        let rules = rules.iter().map(rule).collect();
        TenantRules { tenant: contract::TenantId(id), name: name.parse().unwrap(), vni: None, rules }
    }

    /// How many rules there are then, or whose are refused, and why.
    fn tried(told: &[TenantRules]) -> Result<usize, (u64, String)> {
        let file = parse(&format!("{BASE}{MORE}")).unwrap();
        match lower::snapshot(&file, told, 1, &[], &mut Names::default(), None) {
            Ok(snapshot) => Ok(snapshot.tables.rule_count()),
            Err(error @ LowerError::Told { tenant, .. }) => Err((tenant.0, error.to_string())),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn rules_of_a_control_plane_stand_beside_those_of_the_file() {
        let blue = network(1, "blue", &[("10.0.0.2", Action::Drop), ("10.0.1.0/24", Action::Forward)]);
        let green = network(2, "green", &[("10.0.0.2", Action::Trap)]);
        let elsewhere = network(3, "red", &[("10.0.0.2", Action::Drop)]);
        assert_eq!(tried(&[blue.clone(), elsewhere.clone(), green.clone()]), Ok(4));

        let refused = |told: &[TenantRules], whose: u64, says: &str| {
            let (tenant, why) = tried(told).expect_err("it is refused");
            assert!(tenant == whose && why.contains(says), "{tenant}: {why}");
        };
        let other = TenantRules { vni: Some(201), ..green.clone() };
        refused(&[blue.clone(), other], 2, "its vni is 201 there and 200 in this node's file");
        // The file's own rule is the first, and one of another tenant's network counts before it.
        let twice = network(1, "blue", &[("10.0.0.3", Action::Trap)]);
        refused(&[elsewhere, green.clone(), twice], 1, "goes to \"10.0.0.3\"");
        let mut far = blue.clone();
        far.rules[1].vtep = Some("2001:db8::1".to_owned());
        refused(&[far, green.clone()], 1, "is not reached by listen");
        // What only the tables find wrong.
        let host_bits = network(2, "green", &[("10.9.0.1/24", Action::Drop)]);
        refused(&[blue.clone(), host_bits], 2, "10.9.0.1/24");
        let group = network(2, "green", &[("01:00:5e:00:00:01", Action::Drop)]);
        refused(&[blue, group], 2, "01:00:5e");
    }
}
