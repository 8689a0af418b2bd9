//! From the first byte to the choice of an export.
//!
//! The machine answers one option at a time and reads nothing while an answer waits to be sent ("The client
//! MUST NOT send any option until it has received a final reply to any option it has sent"), so a client that
//! does not read holds at most one answer in memory; a list of exports is written piece by piece.
//!
//! Invariants: what was negotiated before TLS counts no more afterwards; input holds at most one option,
//! output at most [`OUTPUT_BYTES`] and one reply more.

use thiserror::Error;
use wire::nbd::handshake::{
    ClientFlags, EXPORT_NAME_ZEROES, ExportNameReply, Greeting, HandshakeFlags, Info, InfoCode, InfoRequest,
    MetaContextRequest, OptionCode, OptionHeader, Reply, ReplyCode,
};
use wire::nbd::{ParseError, text};

use super::{Attach, Export, TlsPolicy};

/// Longest data of an option that is looked at; a longer one is refused.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Longest data of an option that is skipped; a longer one ends the session.
pub const OPTION_SKIP_BYTES_MAX: u32 = 1 << 20;
/// Options after which a client has had its say.
pub const OPTIONS_MAX: u32 = 1024;
/// A list of exports is continued when this much of it was sent.
const OUTPUT_BYTES: usize = 8 << 10;

/// The metadata contexts and their numbers; a session has one of them.
const ALLOCATION: &str = "base:allocation";
pub(super) const ALLOCATION_CONTEXT: u32 = 1;
const CHANGED: &str = "tidegate:changed";
pub(super) const CHANGED_CONTEXT: u32 = 2;
/// What lists the identity of an export: it ends with 32 hexadecimal digits then, and cannot be selected.
const IDENTITY: &str = "tidegate:identity:";
const HANDSHAKE_FLAGS: HandshakeFlags = HandshakeFlags::FIXED_NEWSTYLE.with(HandshakeFlags::NO_ZEROES);

/// Why a handshake ended without an export. The connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// "the server MUST drop the TCP connection if the client sets an unknown flag".
    #[error("the client sent unknown flags {flags:?}; it speaks a later protocol or another one")]
    ClientFlags {
        /// What it sent.
        flags: ClientFlags,
    },
    /// Something else than an option stands where one must.
    #[error("no option where one must stand: {0}")]
    Option(#[from] ParseError),
    /// More than can be skipped.
    #[error("option {option} has {data_bytes} bytes of data, more than {OPTION_SKIP_BYTES_MAX}")]
    OptionBytes {
        /// Which option.
        option: OptionCode,
        /// Its length.
        data_bytes: u32,
    },
    /// A client that never comes to a choice.
    #[error("the client sent more than {OPTIONS_MAX} options")]
    Options,
    /// A client without `NBD_FLAG_C_FIXED_NEWSTYLE` may send nothing but `NBD_OPT_EXPORT_NAME`.
    #[error("the client sent {option} without having agreed to fixed newstyle")]
    NotFixed {
        /// Which option.
        option: OptionCode,
    },
    /// `NBD_OPT_EXPORT_NAME` cannot be refused in any other way.
    #[error("the client asked for an export that there is not: {name:?}")]
    UnknownExport {
        /// What it asked for.
        name: String,
    },
    /// `NBD_OPT_EXPORT_NAME` without TLS where it is required.
    #[error("the client asked for an export without TLS, which is required")]
    TlsRequired,
}

/// What is to be done when nothing is left to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read, and call [`Handshake::process_bytes`], which may go on even without new bytes.
    Read,
    /// Do the TLS handshake as its server, then call [`Handshake::tls_started`]. Bytes that were read and not
    /// consumed came too early: the client has to wait for the answer.
    StartTls,
    /// Make a [`super::Transmission`] of this. Bytes that were read and not consumed belong to it.
    Attach(Attach),
    /// The client is done; close.
    Close,
}

#[derive(Debug)]
enum State {
    /// "Client flags" are awaited.
    Flags,
    /// The header of an option.
    Header,
    /// The data of an option.
    Data(OptionHeader),
    /// The data of an option that is too long, of which `left_bytes` are to come.
    Skip { option: OptionCode, left_bytes: usize },
    /// The export from which a list goes on.
    List { from: usize },
    /// Nothing more is read.
    Ended(Next),
}

/// The acceptor's side of a connection.
#[derive(Debug)]
pub struct Handshake {
    tls: TlsPolicy,
    secured: bool,
    client: ClientFlags,
    structured: bool,
    /// Index of the export for which a context was selected, and which.
    context: Option<(usize, u32)>,
    options: u32,
    state: State,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
}

impl Handshake {
    /// A new connection: the greeting waits to be sent.
    pub fn new(tls: TlsPolicy) -> Self {
        Self {
            tls,
            secured: false,
            client: ClientFlags::NONE,
            structured: false,
            context: None,
            options: 0,
            state: State::Flags,
            input: Vec::new(),
            output: Greeting { flags: HANDSHAKE_FLAGS }.octets().to_vec(),
            sent: 0,
        }
    }

    /// Takes what arrived; returns how many bytes of it were consumed. Keep the rest: it comes first next
    /// time.
    ///
    /// Nothing is consumed while [`Self::dispatch_bytes`] has something to send. `exports` may differ from
    /// call to call; who is on its way to one keeps what it was told.
    pub fn process_bytes(&mut self, bytes: &[u8], exports: &[Export]) -> Result<usize, HandshakeError> {
        let mut at = 0;
        while self.output.is_empty() {
            let needed_bytes = match &self.state {
                State::Flags => ClientFlags::BYTES,
                State::Header => OptionHeader::BYTES,
                State::Data(header) => header.data_bytes as usize,
                State::Skip { option, left_bytes } => {
                    let (option, take) = (*option, (*left_bytes).min(bytes.len() - at));
                    at += take;
                    self.skip(option, *left_bytes - take);
                    if at == bytes.len() {
                        break;
                    }
                    continue;
                }
                State::List { from } => {
                    self.list(*from, exports);
                    continue;
                }
                State::Ended(_) => break,
            };
            let take = (needed_bytes - self.input.len()).min(bytes.len() - at);
            self.input.extend_from_slice(&bytes[at..at + take]);
            at += take;
            if self.input.len() < needed_bytes {
                break;
            }
            let input = std::mem::take(&mut self.input);
            self.process_message(&input, exports)?;
            self.input = input;
            self.input.clear();
        }
        Ok(at)
    }

    /// What to send next; empty when there is nothing.
    pub fn dispatch_bytes(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Says that the first `bytes` of [`Self::dispatch_bytes`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent = (self.sent + bytes).min(self.output.len());
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
    }

    /// What to do next, once [`Self::dispatch_bytes`] is empty.
    pub fn next(&self) -> Next {
        match &self.state {
            State::Ended(next) if self.output.is_empty() => next.clone(),
            _ => Next::Read,
        }
    }

    /// The TLS handshake succeeded.
    ///
    /// "When this command succeeds, the server MUST NOT preserve any negotiation state".
    pub fn tls_started(&mut self) {
        if matches!(self.state, State::Ended(Next::StartTls)) {
            self.secured = true;
            self.structured = false;
            self.context = None;
            self.state = State::Header;
        }
    }

    /// A client without TLS where it is required hears nothing but that.
    fn is_locked(&self) -> bool {
        self.tls == TlsPolicy::Require && !self.secured
    }

    fn process_message(&mut self, input: &[u8], exports: &[Export]) -> Result<(), HandshakeError> {
        match self.state {
            State::Flags => self.process_flags(ClientFlags::parse(input)?),
            State::Header => self.process_header(OptionHeader::parse(input)?),
            State::Data(header) => {
                self.state = State::Header;
                self.process_option(header.option, input, exports)
            }
            State::Skip { .. } | State::List { .. } | State::Ended(_) => Ok(()),
        }
    }

    /// "Client flags": "the server MUST drop the TCP connection if the client sets an unknown flag, or a
    /// flag that does not match something advertised by the server."
    fn process_flags(&mut self, flags: ClientFlags) -> Result<(), HandshakeError> {
        if flags.without(ClientFlags::ALL) != ClientFlags::NONE {
            return Err(HandshakeError::ClientFlags { flags });
        }
        (self.client, self.state) = (flags, State::Header);
        Ok(())
    }

    fn process_header(&mut self, header: OptionHeader) -> Result<(), HandshakeError> {
        let OptionHeader { option, data_bytes } = header;
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeError::Options);
        }
        // "Newstyle negotiation": "In non-fixed newstyle only one option can be set (NBD_OPT_EXPORT_NAME),
        // and it is not optional."
        if !self.client.has(ClientFlags::FIXED_NEWSTYLE) && option != OptionCode::EXPORT_NAME {
            return Err(HandshakeError::NotFixed { option });
        }
        let refuses_by_closing = option == OptionCode::EXPORT_NAME;
        if data_bytes > OPTION_SKIP_BYTES_MAX || (refuses_by_closing && data_bytes > OPTION_BYTES_MAX) {
            return Err(HandshakeError::OptionBytes { option, data_bytes });
        }
        self.state = if data_bytes > OPTION_BYTES_MAX {
            State::Skip { option, left_bytes: data_bytes as usize }
        } else {
            State::Data(header)
        };
        Ok(())
    }

    fn skip(&mut self, option: OptionCode, left_bytes: usize) {
        if left_bytes > 0 {
            self.state = State::Skip { option, left_bytes };
            return;
        }
        self.state = State::Header;
        match option {
            // "a server SHOULD ignore any data sent by the client rather than rejecting the request as
            // invalid".
            OptionCode::ABORT => self.process_abort(),
            _ if self.is_locked() => self.refuse_without_tls(option),
            _ => self.refuse(option, ReplyCode::ERR_TOO_BIG, "the option's data is too long"),
        }
    }

    fn process_option(
        &mut self,
        option: OptionCode,
        data: &[u8],
        exports: &[Export],
    ) -> Result<(), HandshakeError> {
        match option {
            OptionCode::ABORT => self.process_abort(),
            OptionCode::STARTTLS => self.process_starttls(data),
            OptionCode::EXPORT_NAME if self.is_locked() => return Err(HandshakeError::TlsRequired),
            // "FORCEDTLS mode": "If the server receives any other option, including NBD_OPT_INFO and
            // unsupported options, it MUST reply with NBD_REP_ERR_TLS_REQD if TLS has not been initiated".
            _ if self.is_locked() => self.refuse_without_tls(option),
            OptionCode::EXPORT_NAME => return self.process_export_name(data, exports),
            OptionCode::LIST if data.is_empty() => self.state = State::List { from: 0 },
            OptionCode::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, &Reply::Ack);
            }
            // "the server SHOULD reject a request that includes data with NBD_REP_ERR_INVALID".
            OptionCode::LIST | OptionCode::STRUCTURED_REPLY => {
                self.refuse(option, ReplyCode::ERR_INVALID, "this option has no data");
            }
            OptionCode::INFO | OptionCode::GO => self.process_info(option, data, exports),
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                self.process_meta_context(option, data, exports);
            }
            // "Baseline": "Servers that receive messages which they do not implement MUST reply to them with
            // NBD_REP_ERR_UNSUP".
            _ => self.refuse(option, ReplyCode::ERR_UNSUP, "this option is not known here"),
        }
        Ok(())
    }

    /// "`NBD_OPT_ABORT`": "The server MUST reply with NBD_REP_ACK."
    fn process_abort(&mut self) {
        self.reply(OptionCode::ABORT, &Reply::Ack);
        self.state = State::Ended(Next::Close);
    }

    /// "NOTLS mode": "it MUST respond with NBD_REP_ERR_POLICY (if it does not support TLS for policy
    /// reasons)". "FORCEDTLS mode": "prior to negotiating TLS, it MUST reply with NBD_REP_ACK"; "when TLS
    /// has already been negotiated, it MUST reply with NBD_REP_ERR_INVALID".
    fn process_starttls(&mut self, data: &[u8]) {
        let option = OptionCode::STARTTLS;
        if self.tls == TlsPolicy::Off {
            self.refuse(option, ReplyCode::ERR_POLICY, "TLS is not configured here");
        } else if self.secured {
            self.refuse(option, ReplyCode::ERR_INVALID, "TLS has been started already");
        } else if !data.is_empty() {
            self.refuse(option, ReplyCode::ERR_INVALID, "this option has no data");
        } else {
            self.reply(option, &Reply::Ack);
            self.state = State::Ended(Next::StartTls);
        }
    }

    /// "`NBD_OPT_EXPORT_NAME`": "If the chosen export does not exist or requirements for the chosen export
    /// are not met, the server MUST terminate the session."
    fn process_export_name(&mut self, data: &[u8], exports: &[Export]) -> Result<(), HandshakeError> {
        let name = text(data)?;
        let Some(index) = find(exports, name) else {
            return Err(HandshakeError::UnknownExport { name: name.to_owned() });
        };
        let export = &exports[index];
        let reply = ExportNameReply { size_bytes: export.size_bytes(), flags: export.flags(self.structured) };
        self.output.extend_from_slice(&reply.octets());
        if !self.client.has(ClientFlags::NO_ZEROES) {
            self.output.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        self.attach(index, export);
        Ok(())
    }

    /// "`NBD_OPT_LIST`": "Return zero or more NBD_REP_SERVER replies, one for each export, followed by
    /// NBD_REP_ACK".
    fn list(&mut self, from: usize, exports: &[Export]) {
        let mut from = from;
        while self.output.len() < OUTPUT_BYTES {
            let Some(Export { name, description, .. }) = exports.get(from) else {
                self.reply(OptionCode::LIST, &Reply::Ack);
                self.state = State::Header;
                return;
            };
            self.reply(OptionCode::LIST, &Reply::Server { name, description });
            from += 1;
        }
        self.state = State::List { from };
    }

    /// "`NBD_OPT_INFO` and `NBD_OPT_GO`": "The server MUST ignore any information requests it does not
    /// understand."
    fn process_info(&mut self, option: OptionCode, data: &[u8], exports: &[Export]) {
        let Ok(request) = InfoRequest::parse(data) else {
            return self.refuse(option, ReplyCode::ERR_INVALID, "the option's data is malformed");
        };
        let Some(index) = find(exports, request.name) else {
            return self.refuse(option, ReplyCode::ERR_UNKNOWN, "there is no such export");
        };
        let export = &exports[index];
        let wants = |code| request.wanted().any(|wanted| wanted == code);
        let (size_bytes, flags) = (export.size_bytes(), export.flags(self.structured));
        self.reply(option, &Reply::Info(Info::Export { size_bytes, flags }));
        if wants(InfoCode::NAME) {
            self.reply(option, &Reply::Info(Info::Name(export.name())));
        }
        if wants(InfoCode::DESCRIPTION) {
            self.reply(option, &Reply::Info(Info::Description(export.description())));
        }
        // "Size constraints": "A server with size constraints other than the default SHOULD advertise the
        // size constraints during handshake phase", so it is said unasked.
        if let Some(sizes) = export.block_sizes() {
            self.reply(option, &Reply::Info(Info::BlockSize(sizes)));
        }
        self.reply(option, &Reply::Ack);
        if option == OptionCode::GO {
            self.attach(index, export);
        }
    }

    fn attach(&mut self, index: usize, export: &Export) {
        // "where the final time it was sent, it referred to the same export name that was ultimately selected".
        let selected = |context| self.context == Some((index, context));
        let changed = selected(CHANGED_CONTEXT);
        let mut export = export.clone();
        export.read_only |= changed;
        self.state = State::Ended(Next::Attach(Attach {
            export,
            structured: self.structured,
            allocation: selected(ALLOCATION_CONTEXT),
            changed,
            secured: self.secured,
        }));
    }

    /// "Metadata querying" and the two options' own sections.
    fn process_meta_context(&mut self, option: OptionCode, data: &[u8], exports: &[Export]) {
        let sets = option == OptionCode::SET_META_CONTEXT;
        if sets {
            // "Issuing this command replaces all previously-set metadata contexts (including when this
            // command fails)".
            self.context = None;
        }
        if !self.structured {
            let why = "structured replies must be negotiated first";
            return self.refuse(option, ReplyCode::ERR_INVALID, why);
        }
        let Ok(request) = MetaContextRequest::parse(data) else {
            return self.refuse(option, ReplyCode::ERR_INVALID, "the option's data is malformed");
        };
        // "semantically invalid (such as lacking the required colon that delimits the namespace [...]), the
        // server MAY fail the request with NBD_REP_ERR_INVALID".
        if request.queries().any(|query| !query.contains(':')) {
            return self.refuse(option, ReplyCode::ERR_INVALID, "a query has no namespace");
        }
        let Some(index) = find(exports, request.name) else {
            return self.refuse(option, ReplyCode::ERR_UNKNOWN, "there is no such export");
        };
        // "`base:` - the server MUST ignore this form during NBD_OPT_SET_META_CONTEXT, and MUST support this
        // as a wildcard during NBD_OPT_LIST_META_CONTEXT". Without queries a list has all, and nothing is
        // selected.
        let asks = |what: &str| request.queries().any(|query| query == what);
        if sets {
            // "the server SHOULD reply with the contexts that it will provide": of both, what a copy asks for.
            let changed = asks(CHANGED).then_some((CHANGED_CONTEXT, CHANGED));
            let selected = changed.or(asks(ALLOCATION).then_some((ALLOCATION_CONTEXT, ALLOCATION)));
            if let Some((id, name)) = selected {
                self.reply(option, &Reply::MetaContext { id, name });
            }
            self.reply(option, &Reply::Ack);
            self.context = selected.map(|(id, _)| (index, id));
            return;
        }
        // "The metadata context ID in these replies is reserved and SHOULD be set to zero" in a list.
        let lists = |name: &str, wild: &str| request.queries == 0 || asks(name) || asks(wild);
        let (base, ours) = (lists(ALLOCATION, "base:"), lists(CHANGED, "tidegate:"));
        let identity = exports[index].identity.filter(|_| lists(IDENTITY, "tidegate:"));
        if base {
            self.reply(option, &Reply::MetaContext { id: 0, name: ALLOCATION });
        }
        if ours {
            self.reply(option, &Reply::MetaContext { id: 0, name: CHANGED });
        }
        if let Some(identity) = identity {
            let name = format!("{IDENTITY}{:032x}", u128::from_be_bytes(identity));
            self.reply(option, &Reply::MetaContext { id: 0, name: &name });
        }
        self.reply(option, &Reply::Ack);
    }

    fn refuse_without_tls(&mut self, option: OptionCode) {
        self.refuse(option, ReplyCode::ERR_TLS_REQD, "TLS is required; start it first");
    }

    fn refuse(&mut self, option: OptionCode, code: ReplyCode, message: &'static str) {
        self.reply(option, &Reply::Error { code, message });
    }

    fn reply(&mut self, option: OptionCode, reply: &Reply<'_>) {
        let start = self.output.len();
        self.output.resize(start + wire::nbd::handshake::OptionReplyHeader::BYTES + reply.data_bytes(), 0);
        // Names and descriptions were checked when the export was made, so there is nothing to refuse.
        let written = reply.emit(option, &mut self.output[start..]);
        debug_assert_eq!(written, Ok(self.output.len() - start));
    }
}

/// "`NBD_OPT_EXPORT_NAME`": the empty name "is reserved for a 'default' export": the one that has no name,
/// or the only one.
fn find(exports: &[Export], name: &str) -> Option<usize> {
    let named = exports.iter().position(|export| export.name() == name);
    named.or(if name.is_empty() && exports.len() == 1 { Some(0) } else { None })
}
