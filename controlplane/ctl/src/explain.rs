//! `tidegate explain`: the constraint, node, policy and reason behind a wait or a decision.

use contract::Explanation;

use crate::ask::{Asker, Failure, encoded, print};

/// Explains one thing.
pub async fn run(asker: &Asker, id: &str) -> Result<(), Failure> {
    let id: Vec<String> = id.split('/').map(encoded).collect();
    let explained: Explanation = asker.client.get(&format!("/v1/explain/{}", id.join("/"))).await?;
    if asker.json {
        return asker.json(&explained);
    }
    let mut out = format!("{}: {}\n", explained.about, explained.state);
    for reason in &explained.reasons {
        let node = reason.node.map_or(String::new(), |node| format!(" [{node}]"));
        let policy = reason.policy.as_ref().map_or(String::new(), |policy| format!(" (decided by {policy})"));
        out += &format!("  - {}{node}{policy}\n", reason.text);
    }
    print(&out)
}
