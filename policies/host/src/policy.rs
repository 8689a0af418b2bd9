//! Admission: from bytes to a policy that may run.
//!
//! In this order: size, signature, imports and exports, compilation (on a thread of low priority, or from the
//! cache), a first start with its configuration, golden vectors on two instances with the same answers and
//! fuel, and a state that goes out and comes back. What fails is refused with a sentence for its author.

use std::sync::Arc;

use thiserror::Error;
use verdict::{Invalid, Kind, Question, Tick, Verdict};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};

use crate::cache::{Cache, Found};
use crate::digest::{Digest, PolicyId};
use crate::engine::Engine;
use crate::fault::Fault;
use crate::guest::{self, Cell, Exports, Guest, State};
use crate::trust::{Trust, TrustError};
use crate::workload;

/// The version of the package that this host speaks.
const PACKAGE: &str = "tidegate:policy/";
const MAJOR_MINOR: (u64, u64) = (0, 1);

/// Pairs that a policy is configured with.
pub type Config = Vec<(String, String)>;

/// Most pairs of a configuration, and bytes of a text in it.
const CONFIG_PAIRS_MAX: usize = 64;
const CONFIG_TEXT_BYTES_MAX: usize = 4_096;

/// Bytes that want to become a policy.
#[derive(Clone, Debug, Default)]
pub struct Candidate<'a> {
    /// A component.
    pub component: &'a [u8],
    /// Its Ed25519 signature.
    pub signature: Option<&'a [u8]>,
    /// What this version is configured with.
    pub config: Config,
}

/// Why a policy is not admitted.
#[derive(Debug, Error)]
pub enum AdmitError {
    /// Too large.
    #[error(
        "the component has {bytes} bytes, and {max} are allowed; build it with opt-level = \"s\" and strip = true"
    )]
    Size {
        /// Its size.
        bytes: usize,
        /// The most.
        max: usize,
    },
    /// Not signed by whom it should be.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Not a component.
    #[error("this is not a WebAssembly component that can be compiled: {0}")]
    Compile(String),
    /// It wants something that there is not.
    #[error("the policy imports `{import}`, and the only import there is is `log`{hint}")]
    Import {
        /// What it wants.
        import: String,
        /// What to do.
        hint: &'static str,
    },
    /// It speaks another version.
    #[error(
        "the policy was built for tidegate:policy@{found}, and this host runs 0.1.x; build it against wit/ of 0.1"
    )]
    Version {
        /// What it speaks.
        found: String,
    },
    /// It is no policy.
    #[error("the component exports no `{missing}`, which a policy of the world `{world}` has")]
    Export {
        /// What is missing.
        missing: String,
        /// The world it was taken for.
        world: String,
    },
    /// Its configuration is too large.
    #[error("a configuration has at most 64 keys, and texts of at most 4,096 bytes")]
    Config,
    /// It does not start, or faults on golden vectors.
    #[error("golden vector {vector} (`{function}`): {fault}")]
    Golden {
        /// Which one.
        vector: usize,
        /// What was asked.
        function: &'static str,
        /// What happened.
        fault: Fault,
    },
    /// Two instances differ.
    #[error(
        "golden vector {vector} (`{function}`): two instances give different answers or use different fuel"
    )]
    NotDeterministic {
        /// Which one.
        vector: usize,
        /// What was asked.
        function: &'static str,
    },
    /// It does not start or does not hand over its state.
    #[error("{0}")]
    Life(Fault),
    /// There are enough.
    #[error(
        "{max} policies are ready already; `tidegate policy list` shows them: `tidegate policy remove` one, then push again"
    )]
    Full {
        /// Most.
        max: usize,
    },
}

/// A policy that may run.
pub struct Policy {
    id: PolicyId,
    kind: Kind,
    summary: String,
    config: Config,
    engine: Engine,
    component: InstancePre<Cell>,
    exports: Exports,
    admission: Admission,
}

/// What admission saw.
#[derive(Clone, Debug, Default)]
pub struct Admission {
    /// Fuel of the costliest golden vector.
    pub fuel_max: u64,
    /// The compiled code came from the cache.
    pub from_cache: bool,
    /// What was wrong with the cache; the policy was compiled instead.
    pub cache_refused: Option<String>,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Who may be admitted, and where compiled code is kept.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Whose policies may run.
    pub trust: Trust,
    /// Compiled policies.
    pub cache: Option<Cache>,
}

impl Gate {
    /// Admits a policy, or says why not. Takes as long as compiling does; nothing waits for it but the caller.
    pub fn admit(&self, engine: &Engine, candidate: &Candidate<'_>) -> Result<Arc<Policy>, AdmitError> {
        self.admit_by(&self.trust, engine, candidate)
    }

    /// Admits a policy that is part of the program that asks, whoever else is trusted.
    pub fn admit_own(&self, engine: &Engine, candidate: &Candidate<'_>) -> Result<Arc<Policy>, AdmitError> {
        self.admit_by(&Trust::default(), engine, candidate)
    }

    fn admit_by(
        &self,
        trust: &Trust,
        engine: &Engine,
        candidate: &Candidate<'_>,
    ) -> Result<Arc<Policy>, AdmitError> {
        let (bytes, max) = (candidate.component.len(), engine.limits().component_bytes);
        if bytes > max {
            return Err(AdmitError::Size { bytes, max });
        }
        let long = |text: &String| text.len() > CONFIG_TEXT_BYTES_MAX;
        if candidate.config.len() > CONFIG_PAIRS_MAX
            || candidate.config.iter().any(|(key, value)| long(key) || long(value))
        {
            return Err(AdmitError::Config);
        }
        trust.check(candidate.component, candidate.signature)?;
        let digest = Digest::of(candidate.component);
        let (component, mut admission) = self.compiled(engine, digest, candidate.component)?;
        check_imports(engine, &component)?;
        let kind = kind_of(engine, &component)?;
        let exports = Exports::of(&component, kind)
            .map_err(|missing| AdmitError::Export { missing, world: kind.to_string() })?;
        let failed = |error: wasmtime::Error| AdmitError::Compile(format!("{error:#}"));
        let component =
            guest::linker(engine).and_then(|linker| linker.instantiate_pre(&component)).map_err(failed)?;
        let config = candidate.config.clone();
        let describe = |mut guest: Guest| guest.describe();
        let description = Guest::start(engine, &component, &exports, &config)
            .and_then(describe)
            .map_err(AdmitError::Life)?;
        let config_digest = Digest::of_config(&config);
        let id = PolicyId {
            name: short(description.name),
            version: short(description.version),
            digest,
            config: config_digest,
        };
        let summary = short(description.summary);
        let engine = engine.clone();
        let mut policy =
            Policy { id, kind, summary, config, engine, component, exports, admission: Admission::default() };
        admission.fuel_max = policy.golden()?;
        policy.hand_over().map_err(AdmitError::Life)?;
        policy.admission = admission;
        Ok(Arc::new(policy))
    }

    fn compiled(
        &self,
        engine: &Engine,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<(Component, Admission), AdmitError> {
        let mut admission = Admission::default();
        match self.cache.as_ref().map(|cache| cache.find(engine, digest)) {
            Some(Found::Compiled(component)) => {
                admission.from_cache = true;
                return Ok((component, admission));
            }
            Some(Found::Refused(why)) => admission.cache_refused = Some(why),
            Some(Found::Nothing) | None => {}
        }
        let component = compile(engine, bytes)?;
        if let Some(cache) = &self.cache
            && let Err(why) = cache.keep(engine, digest, &component)
        {
            // It runs all the same; the next start compiles again.
            admission.cache_refused = Some(why);
        }
        Ok((component, admission))
    }
}

/// Compiles on a thread of its own with low priority, so that decisions go on beside it.
fn compile(engine: &Engine, bytes: &[u8]) -> Result<Component, AdmitError> {
    let failed = |error: &dyn std::fmt::Display| AdmitError::Compile(format!("{error:#}"));
    std::thread::scope(|scope| {
        let work = || {
            // On Linux niceness belongs to the thread. Where that is refused, it compiles at ordinary priority.
            let _ = rustix::process::nice(10);
            Component::new(engine.wasmtime(), bytes)
        };
        let thread = std::thread::Builder::new().name("policy-compile".into()).spawn_scoped(scope, work);
        let outcome = thread.map_err(|error| failed(&error))?.join();
        outcome.map_err(|_| failed(&"the compiler panicked"))?.map_err(|error| failed(&error))
    })
}

fn check_imports(engine: &Engine, component: &Component) -> Result<(), AdmitError> {
    for (name, import) in component.component_type().imports(engine.wasmtime()) {
        match (name, &import.ty) {
            ("log", ComponentItem::ComponentFunc(_)) => continue,
            // Types are named there; nothing can be called.
            (name, ComponentItem::ComponentInstance(instance)) if name.starts_with(PACKAGE) => {
                check_version(name)?;
                let callable = |item: &ComponentItem| !matches!(item, ComponentItem::Type(_));
                if !instance.exports(engine.wasmtime()).any(|(_, export)| callable(&export.ty)) {
                    continue;
                }
            }
            _ => {}
        }
        let hint = if name.starts_with("wasi:") {
            "; build for wasm32-unknown-unknown, which has no system below it, and not for wasm32-wasip2"
        } else {
            ""
        };
        return Err(AdmitError::Import { import: name.to_owned(), hint });
    }
    Ok(())
}

fn check_version(name: &str) -> Result<(), AdmitError> {
    let version = name.split_once('@').map_or("", |(_, version)| version);
    let mut parts = version.split('.').map(str::parse::<u64>);
    if let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next())
        && (major, minor) == MAJOR_MINOR
    {
        return Ok(());
    }
    Err(AdmitError::Version { found: version.to_owned() })
}

/// The kind whose functions are exported.
fn kind_of(engine: &Engine, component: &Component) -> Result<Kind, AdmitError> {
    let mut names = Vec::new();
    for (name, _) in component.component_type().exports(engine.wasmtime()) {
        if name.starts_with(PACKAGE) {
            check_version(name)?;
        }
        names.push(name.to_owned());
    }
    let exported = |kind: &Kind| {
        guest::decisions(*kind).iter().any(|function| names.iter().any(|name| name == function))
    };
    Kind::ALL.into_iter().find(exported).ok_or_else(|| AdmitError::Export {
        missing: "schedule`, `update-weights` or `build-profile".into(),
        world: "scheduling`, `leasing` or `migration".into(),
    })
}

/// Texts of a stranger, for tables and logs.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(128));
    text.retain(|letter| !letter.is_control());
    text
}

impl Policy {
    /// Which version of what.
    pub fn id(&self) -> &PolicyId {
        &self.id
    }

    /// What it decides.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// One sentence about it.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// What it is configured with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What admission saw.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// A live instance, from a state if there is one.
    pub(crate) fn start(&self, state: Option<&State>) -> Result<Guest, Fault> {
        let mut guest = Guest::start(&self.engine, &self.component, &self.exports, &self.config)?;
        if let Some(state) = state {
            guest.import_state(state)?;
        }
        Ok(guest)
    }

    /// Asks two instances the same; returns the most fuel that an answer took.
    fn golden(&self) -> Result<u64, AdmitError> {
        let (mut one, mut other) =
            (self.start(None).map_err(AdmitError::Life)?, self.start(None).map_err(AdmitError::Life)?);
        let mut fuel_max = 0;
        for (vector, (tick, question)) in workload::golden(self.kind).into_iter().enumerate() {
            let function = question.function();
            let ask = |guest: &mut Guest| -> Result<(Verdict, u64), AdmitError> {
                let answer = guest.ask(tick, &question).map_err(|(fault, _)| fault);
                let answer = answer.and_then(|answer| {
                    checked(tick, &question, &answer.verdict)?;
                    Ok(answer)
                });
                let answer = answer.map_err(|fault| AdmitError::Golden { vector, function, fault })?;
                Ok((answer.verdict, answer.spent.fuel))
            };
            let (first, second) = (ask(&mut one)?, ask(&mut other)?);
            if first != second {
                return Err(AdmitError::NotDeterministic { vector, function });
            }
            fuel_max = fuel_max.max(first.1);
        }
        Ok(fuel_max)
    }

    /// What it exports it must take over itself.
    fn hand_over(&self) -> Result<(), Fault> {
        let state = self.start(None)?.export_state()?;
        self.start(Some(&state)).map(|_| ())
    }
}

/// An answer that abstains says nothing that could be wrong.
pub(crate) fn checked(tick: Tick, question: &Question, verdict: &Verdict) -> Result<(), Invalid> {
    if verdict.abstains() && verdict.why().len() <= verdict::WHY_BYTES_MAX {
        return Ok(());
    }
    question.check(tick, verdict)
}
