//! Making a component of a policy.
//!
//! The generated code stands in the guest's own crate, because the description of its world is linked into
//! the module from there. It exists only for WebAssembly: a policy's own tests run natively without it.

/// Exports a policy: `sdk::export!(leasing: MyPolicy, wit: "path/to/wit")`. The kind is `scheduling`,
/// `leasing` or `migration`; the path is relative to the crate's folder.
#[macro_export]
macro_rules! export {
    (scheduling: $policy:ty, wit: $wit:literal) => {
        $crate::export!(@life $policy, "scheduling", $wit, {
            fn schedule(now: Tick, candidates: Candidates, accounts: Accounts, tenants: Tenants) -> Assignments {
                with(|policy| $crate::Scheduling::schedule(policy, now, &candidates, &accounts, &tenants))
            }
        });
    };
    (leasing: $policy:ty, wit: $wit:literal) => {
        $crate::export!(@life $policy, "leasing", $wit, {
            fn update_weights(now: Tick, producers: Producers) -> Weights {
                with(|policy| $crate::Leasing::update_weights(policy, now, &producers))
            }

            fn pick_victims(now: Tick, need: Resources, leases: Leases, grace_max_ms: u32) -> Victims {
                with(|policy| $crate::Leasing::pick_victims(policy, now, need, &leases, grace_max_ms))
            }
        });
    };
    (migration: $policy:ty, wit: $wit:literal) => {
        $crate::export!(@life $policy, "migration", $wit, {
            fn build_profile(now: Tick, samples: Samples, rules: Rules) -> Profile {
                with(|policy| $crate::Migration::build_profile(policy, now, &samples, rules))
            }

            fn choose_time(
                now: Tick, profile: Profile, transfer: Transfer, link: Forecast, candidates_ms: Vec<u64>,
            ) -> Timing {
                with(|policy| {
                    $crate::Migration::choose_time(policy, now, &profile, transfer, &link, &candidates_ms)
                })
            }
        });
    };
    (@life $policy:ty, $world:literal, $wit:literal, { $($decisions:tt)* }) => {
        #[cfg(target_arch = "wasm32")]
        type Exported = $policy;

        #[cfg(target_arch = "wasm32")]
        #[allow(missing_docs)]
        mod bindings {
            use std::cell::RefCell;

            use super::Exported;
            use $crate::types::*;

            $crate::wit_bindgen::generate!({
                path: $wit,
                world: $world,
                with: { "tidegate:policy/types@0.1.0": ::sdk::types },
                runtime_path: "::sdk::wit_bindgen::rt",
            });

            use exports::tidegate::policy::state::{Description, Guest as State, Snapshot};

            struct Component;

            thread_local! {
                static POLICY: RefCell<Option<Exported>> = const { RefCell::new(None) };
            }

            fn with<T>(act: impl FnOnce(&mut Exported) -> T) -> T {
                // INVARIANT: the host calls `init` first, and drops an instance whose `init` has failed.
                POLICY.with_borrow_mut(|policy| act(policy.as_mut().expect("the host calls `init` first")))
            }

            impl State for Component {
                fn describe() -> Description {
                    Description {
                        name: env!("CARGO_PKG_NAME").into(),
                        version: env!("CARGO_PKG_VERSION").into(),
                        summary: <Exported as $crate::Policy>::SUMMARY.into(),
                    }
                }

                fn init(config: Vec<(String, String)>) -> Result<(), String> {
                    // A trap says only that there was one; the text of a panic goes through the log.
                    std::panic::set_hook(Box::new(|panic| log(&panic.to_string())));
                    let mut config = $crate::Config::new(config);
                    let policy = <Exported as $crate::Policy>::new(&mut config)?;
                    config.finish()?;
                    POLICY.set(Some(policy));
                    Ok(())
                }

                fn export_state() -> Snapshot {
                    let bytes = with(|policy| $crate::Policy::save(policy));
                    Snapshot { schema: <Exported as $crate::Policy>::SCHEMA, bytes }
                }

                fn import_state(state: Snapshot) -> Result<(), String> {
                    with(|policy| $crate::Policy::load(policy, state.schema, &state.bytes))
                }
            }

            impl Guest for Component {
                $($decisions)*
            }

            export!(Component);
        }
    };
}
