//! Clients that we did not write, against the target over real sockets: libnbd's tools, QEMU's and fio.
//!
//! The server is the smallest shell that can be: one thread, one `poll`, a volume in memory. A client that is
//! not installed is skipped aloud.

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use block::{BlockSize, VolumeId};
use common::{Image, Recorder};
use frame::IoPool;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use session::nbd::{Export, Handshake, Limits, Next, Slices, TlsPolicy, Transmission};

const MIB: usize = 1 << 20;

trait Socket: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send> Socket for T {}

enum Phase {
    Handshake(Box<Handshake>),
    Transmission(Box<Transmission>),
    Closed,
}

struct Connection {
    socket: Box<dyn Socket>,
    phase: Phase,
    /// Read and not consumed.
    received: Vec<u8>,
}

/// Serves until told to stop; owns volumes and connections.
struct Shell {
    exports: Vec<Export>,
    images: Vec<Image>,
    pool: IoPool,
    connections: Vec<Connection>,
    started: Instant,
}

impl Shell {
    fn new() -> Shell {
        let images = vec![Image::new(64 * MIB, BlockSize::B512), Image::new(16 * MIB, BlockSize::B4096)];
        let export = |name, index: usize, image: &Image| {
            let volume = VolumeId(index as u32);
            Export::new(name, "a test volume", volume, image.block_size, image.blocks()).expect("sound")
        };
        let mut exports = vec![export("disk", 0, &images[0]), export("large-blocks", 1, &images[1])];
        exports.push(export("read-only", 0, &images[0]));
        exports.iter_mut().for_each(|export| export.fast_zero = true);
        exports[2].read_only = true;
        let pool = common::pool(256);
        Shell { exports, images, pool, connections: Vec::new(), started: Instant::now() }
    }

    fn serve(mut self, tcp: TcpListener, unix: UnixListener, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut fds = vec![
                PollFd::from_borrowed_fd(tcp.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(unix.as_fd(), PollFlags::IN),
            ];
            fds.extend(self.connections.iter().map(|connection| {
                let fd: BorrowedFd<'_> = connection.socket.as_fd();
                PollFd::from_borrowed_fd(fd, connection.wanted())
            }));
            let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            poll(&mut fds, Some(&tick)).expect("polls");
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[0]
                && let Ok((socket, _)) = tcp.accept()
            {
                socket.set_nodelay(true).expect("TCP has it");
                socket.set_nonblocking(true).expect("sockets have it");
                self.accept(Box::new(socket));
            }
            if ready[1]
                && let Ok((socket, _)) = unix.accept()
            {
                socket.set_nonblocking(true).expect("sockets have it");
                self.accept(Box::new(socket));
            }
            for (index, _) in ready[2..].iter().enumerate().filter(|(_, ready)| **ready) {
                let now_ns = self.started.elapsed().as_nanos() as u64;
                let Shell { exports, images, pool, connections, .. } = &mut self;
                connections[index].turn(exports, images, pool, now_ns);
            }
            self.connections.retain(|connection| !matches!(connection.phase, Phase::Closed));
        }
        self.connections.iter_mut().for_each(|connection| connection.abort(&mut self.pool));
    }

    fn accept(&mut self, socket: Box<dyn Socket>) {
        let phase = Phase::Handshake(Box::new(Handshake::new(TlsPolicy::Off)));
        self.connections.push(Connection { socket, phase, received: Vec::new() });
    }
}

impl Connection {
    fn wanted(&self) -> PollFlags {
        let (reads, writes) = match &self.phase {
            Phase::Handshake(handshake) => (true, !handshake.dispatch_bytes().is_empty()),
            Phase::Transmission(session) => (session.wants_input(), session.has_output()),
            Phase::Closed => (false, false),
        };
        let flags = if reads { PollFlags::IN } else { PollFlags::empty() };
        if writes { flags | PollFlags::OUT } else { flags }
    }

    fn abort(&mut self, pool: &mut IoPool) {
        if let Phase::Transmission(session) = &mut self.phase {
            session.abort(pool);
            assert!(session.is_finished(), "the volume answers at once");
        }
        self.phase = Phase::Closed;
    }

    /// Reads, works and writes as far as it goes without waiting.
    fn turn(&mut self, exports: &[Export], images: &mut [Image], pool: &mut IoPool, now_ns: u64) {
        let mut chunk = vec![0; 256 << 10];
        let wants = self.wanted().contains(PollFlags::IN);
        let end = match if wants { self.socket.read(&mut chunk) } else { Ok(usize::MAX) } {
            Ok(0) => true,
            Ok(usize::MAX) => false,
            Ok(bytes) => {
                self.received.extend_from_slice(&chunk[..bytes]);
                false
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        let mut moved = true;
        while moved && !end {
            moved = match self.work(exports, images, pool, now_ns) {
                Ok(moved) => moved,
                Err(why) => {
                    eprintln!("closed: {why}");
                    return self.abort(pool);
                }
            };
        }
        if end {
            self.abort(pool);
        }
    }

    fn work(
        &mut self,
        exports: &[Export],
        images: &mut [Image],
        pool: &mut IoPool,
        now_ns: u64,
    ) -> Result<bool, String> {
        let mut moved = false;
        match &mut self.phase {
            Phase::Handshake(handshake) => {
                let taken = handshake.process_bytes(&self.received, exports).map_err(|e| e.to_string())?;
                self.received.drain(..taken);
                let sent = write(&mut self.socket, &[std::io::IoSlice::new(handshake.dispatch_bytes())])?;
                handshake.sent(sent);
                moved |= taken + sent > 0;
                match handshake.next() {
                    Next::Read => {}
                    Next::StartTls => return Err("no TLS here".into()),
                    Next::Attach(attach) => {
                        let session = Transmission::new(attach, Limits::default());
                        self.phase = Phase::Transmission(Box::new(session));
                    }
                    Next::Close => self.phase = Phase::Closed,
                }
            }
            Phase::Transmission(session) => {
                let taken = session.process_bytes(&self.received, pool, now_ns).map_err(|e| e.to_string())?;
                self.received.drain(..taken);
                let mut sink = Recorder::default();
                session.step(pool, &mut sink);
                moved |= !sink.ios.is_empty();
                for io in sink.ios {
                    let image = &mut images[io.volume.0 as usize];
                    let done = image.execute(io, pool);
                    session.complete(done, pool).map_err(|e| e.to_string())?;
                }
                let mut slices = Slices::new();
                session.dispatch_bytes(pool, &mut slices);
                let sent = write(&mut self.socket, &slices)?;
                drop(slices);
                session.sent(sent, pool);
                session.expire(now_ns).map_err(|e| e.to_string())?;
                moved |= taken + sent > 0;
                if session.is_finished() {
                    self.phase = Phase::Closed;
                }
            }
            Phase::Closed => {}
        }
        Ok(moved)
    }
}

fn write(socket: &mut Box<dyn Socket>, slices: &[std::io::IoSlice<'_>]) -> Result<usize, String> {
    if slices.iter().all(|slice| slice.is_empty()) {
        return Ok(0);
    }
    match socket.write_vectored(slices) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

/// A server on a thread, and a folder for what a test makes.
struct Server {
    folder: PathBuf,
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Server {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tidegate-nbd-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let unix = UnixListener::bind(folder.join("socket")).expect("a fresh path");
        let port = tcp.local_addr().expect("bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || Shell::new().serve(tcp, unix, &seen));
        Server { folder, port, stop, thread: Some(thread) }
    }

    fn tcp(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port)
    }

    fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("socket").display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file of `bytes` that begin with data, with a hole in the middle.
    fn image(&self, name: &str, bytes: usize) -> PathBuf {
        let mut content = vec![0; bytes];
        let mut state = 0x9e37_79b9_u32;
        for (index, byte) in content.iter_mut().enumerate() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = if index / MIB % 3 == 1 { 0 } else { (state >> 24) as u8 };
        }
        fs::write(self.path(name), content).expect("room for it");
        self.path(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        fs::remove_dir_all(&self.folder).ok();
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the server panicked");
    }
}

/// Runs a client that must succeed; `None`, said aloud, if it is not installed.
fn client(program: &str, args: &[&str]) -> Option<String> {
    // nbdsh is Python, and only the system's Python has the system's bindings.
    let mut command = Command::new(program);
    command.args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(std::env::temp_dir());
    let Output { status, stdout, stderr } = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed (libnbd-bin, python3-libnbd, qemu-utils, fio)");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{program} {args:?}: {status}\n{stdout}\n{stderr}");
    Some(stdout.into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the folder's name is UTF-8")
}

#[test]
fn nbdinfo_reads_exports_sizes_and_flags() {
    let server = Server::start();
    let Some(list) = client("nbdinfo", &["--list", "--json", &server.tcp("")]) else { return };
    for wanted in ["disk", "large-blocks", "read-only", "a test volume", "base:allocation"] {
        assert!(list.contains(wanted), "{wanted} in {list}");
    }
    for uri in [server.tcp("disk"), server.unix("disk")] {
        let Some(info) = client("nbdinfo", &["--json", &uri]) else { return };
        for wanted in [
            "\"export-size\": 67108864",
            "\"structured\": true",
            "\"is_read_only\": false",
            "\"can_multi_conn\": true",
            "\"can_fua\": true",
            "\"can_trim\": true",
            "\"can_fast_zero\": true",
            "\"can_cache\": false",
            "\"block_size_minimum\": 512",
            "\"block_size_preferred\": 4096",
            "\"block_size_maximum\": 33554432",
        ] {
            assert!(info.contains(wanted), "{wanted} in {info}");
        }
    }
    let Some(size) = client("nbdinfo", &["--size", &server.unix("large-blocks")]) else { return };
    assert_eq!(size.trim(), "16777216");
    client("nbdinfo", &["--is", "read-only", &server.tcp("read-only")]);
}

#[test]
fn nbdcopy_there_and_back_gives_equal_bytes_and_keeps_holes() {
    let server = Server::start();
    let image = server.image("image", 64 * MIB);
    for (number, uri) in [server.tcp("disk"), server.unix("disk")].iter().enumerate() {
        let back = server.path(&format!("back-{number}"));
        if client("nbdcopy", &["--flush", text(&image), uri]).is_none() {
            return;
        }
        client("nbdcopy", &[uri, text(&back)]);
        assert!(fs::read(&image).expect("ours") == fs::read(&back).expect("nbdcopy wrote it"), "{uri}");
    }
    let Some(map) = client("nbdinfo", &["--map", &server.tcp("disk")]) else { return };
    // Data, hole, data: the second MiB of every three is a hole.
    let first: Vec<Vec<&str>> = map.lines().take(3).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(first[0], ["0", "1048576", "0", "data"], "{map}");
    assert_eq!(first[1], ["1048576", "1048576", "3", "hole,zero"], "{map}");
    assert_eq!(first[2], ["2097152", "2097152", "0", "data"], "{map}");
}

/// What the tools above do not do: every command with its flags, errors by number, long requests.
const SCRIPT: &str = r#"
import errno, nbd

def fails(number, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except nbd.Error as error:
        assert error.errnum == number, (call, error)
    else:
        assert False, (call, args, "did not fail")

def connect(uri, structured=True, export=None):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    return h

MIB = 1 << 20
for structured in (True, False):
    h = connect(URI, structured)
    assert h.get_structured_replies_negotiated() == structured
    data = bytes((i * 7 + (i >> 9)) & 0xff for i in range(3 * MIB + 512))
    h.pwrite(data, 512)
    assert h.pread(len(data), 512) == data
    h.pwrite(data * 10, MIB, nbd.CMD_FLAG_FUA)
    assert h.pread(len(data) * 10, MIB) == data * 10
    assert h.pread(32 * MIB, 0)[MIB:MIB + 512] == data[:512]
    h.flush()
    h.trim(MIB, 4 * MIB, nbd.CMD_FLAG_FUA)
    h.zero(MIB, 8 * MIB)
    h.zero(MIB, 9 * MIB, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    h.zero(MIB, 10 * MIB, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(3 * MIB, 8 * MIB) == bytes(3 * MIB)
    fails(errno.ENOTSUP, h.zero, MIB, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    fails(errno.EINVAL, h.pread, 512, 511)
    fails(errno.EINVAL, h.pread, 512, h.get_size())
    fails(errno.ENOSPC, h.pwrite, bytes(1024), h.get_size() - 512)
    fails(errno.ENOSPC, h.zero, 1024, h.get_size() - 512)
    fails(errno.EINVAL, h.trim, 1024, h.get_size() - 512)
    fails(errno.EINVAL, h.cache, 512, 0)
    fails(errno.EINVAL, h.flush, 1 << 6)
    if structured:
        assert h.can_df()
        assert h.pread(MIB, MIB, nbd.CMD_FLAG_DF) == data[:MIB]
        fails(errno.EOVERFLOW, h.pread, MIB + 512, 0, nbd.CMD_FLAG_DF)
        pieces = []
        piece = lambda buf, at, status, err: pieces.append((at, len(buf), status))
        h.pread_structured(4 * MIB, 7 * MIB, piece)
        assert sum(size for _, size, _ in pieces) == 4 * MIB, pieces
        holes = [at for at, _, status in pieces if status == nbd.READ_HOLE]
        assert holes == [8 * MIB, 10 * MIB], pieces
        extents = []
        h.block_status(16 * MIB, 0, lambda context, at, entries, err: extents.extend(entries))
        assert sum(extents[::2]) == 16 * MIB and set(extents[1::2]) == {0, 3}, extents
        one = []
        extend = lambda context, at, entries, err: one.extend(entries)
        h.block_status(16 * MIB, 8 * MIB, extend, nbd.CMD_FLAG_REQ_ONE)
        assert one == [MIB, 3], one
    else:
        fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
    # Many at once, answered in any order.
    cookies = [h.aio_pread(nbd.Buffer(4096), 4096 * i) for i in range(500)]
    while h.aio_in_flight() > 0:
        h.poll(-1)
        for cookie in cookies[:]:
            if h.aio_command_completed(cookie):
                cookies.remove(cookie)
    assert not cookies
    h.shutdown()

r = connect(URI.replace("disk", "read-only"))
fails(errno.EPERM, r.pwrite, bytes(512), 0)
fails(errno.EPERM, r.zero, 512, 0)
fails(errno.EPERM, r.trim, 512, 0)
assert len(r.pread(512, 0)) == 512
r.flush()
r.shutdown()

# Options one by one, and an export that there is not.
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(URI)
names = []
o.opt_list(lambda name, description: names.append((name, description)))
assert names == [(name, "a test volume") for name in ("disk", "large-blocks", "read-only")], names
o.set_export_name("nothing")
fails(errno.ENOENT, o.opt_info)
o.set_export_name("large-blocks")
o.set_full_info(True)
o.opt_info()
assert o.get_size() == 16 * MIB
assert o.get_block_size(nbd.SIZE_MINIMUM) == 4096
assert o.get_export_description() == "a test volume"
o.opt_go()
o.set_strict_mode(0)
fails(errno.EINVAL, o.pread, 4096, 512)
assert len(o.pread(4096, 4096)) == 4096
o.shutdown()

# The old way in: no options, 124 zeroes.
e = nbd.NBD()
e.set_handshake_flags(0)
e.connect_uri(URI)
assert e.get_protocol() == "newstyle", e.get_protocol()
assert e.get_size() == 64 * MIB
assert len(e.pread(4096, 0)) == 4096
e.shutdown()
"#;

#[test]
fn nbdsh_reaches_every_command_and_error() {
    let server = Server::start();
    for uri in [server.tcp("disk"), server.unix("disk")] {
        if client("nbdsh", &["-c", &format!("URI = {uri:?}\n{SCRIPT}")]).is_none() {
            return;
        }
    }
}

#[test]
fn qemu_converts_compares_and_runs_its_bench() {
    let server = Server::start();
    let image = server.image("image", 64 * MIB);
    for uri in [server.tcp("disk"), server.unix("disk")] {
        let to = ["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &uri];
        if client("qemu-img", &to).is_none() {
            return;
        }
        client("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &uri]);
        let back = server.path("back.qcow2");
        client("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&back)]);
        client("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&image), text(&back)]);
        let flags = ["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096"];
        client("qemu-img", &[&flags[..], &[&uri]].concat());
        let writes = ["-w", "--flush-interval", "100", "-S", "8192"];
        client("qemu-img", &[&flags[..], &writes[..], &[&uri]].concat());
    }
    let map = ["map", "--output=json", "-f", "raw", &server.tcp("large-blocks")];
    if let Some(map) = client("qemu-img", &map) {
        assert!(map.contains("\"length\": 16777216") && map.contains("\"zero\": true"), "{map}");
    }
    let io = ["-f", "raw", "-c", "write -P 7 0 1M", "-c", "discard 64k 64k", "-c", "write -z -u 128k 64k"];
    let reads = ["-c", "read -P 7 0 64k", "-c", "read -P 0 128k 64k", "-c", "read -P 7 192k 832k"];
    client("qemu-io", &[&io[..], &reads[..], &[&server.unix("large-blocks")]].concat());
}

#[test]
fn fio_verifies_what_it_wrote() {
    let server = Server::start();
    for (export, block) in [("disk", "512-64k"), ("large-blocks", "4k-2m")] {
        let uri = format!("--uri={}", server.unix(export));
        let range = format!("--bsrange={block}");
        let align = if export == "disk" { "--blockalign=512" } else { "--blockalign=4k" };
        let job = ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", &range, align, "--iodepth=32"];
        let check = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--size=16m", "--fsync=64"];
        let thread = ["--thread", "--output-format=terse", "--verify_state_save=0"];
        if client("fio", &[&job[..], &check[..], &thread[..]].concat()).is_none() {
            return;
        }
    }
}

#[test]
fn a_client_that_speaks_nonsense_is_closed_and_others_go_on() {
    let server = Server::start();
    let mut good = UnixStream::connect(server.path("socket")).expect("the server listens");
    let mut greeting = [0; 18];
    good.read_exact(&mut greeting).expect("greeted");
    let mut bad = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
    bad.read_exact(&mut greeting).expect("greeted");
    bad.write_all(&[0xff; 64]).expect("sent");
    let mut rest = Vec::new();
    // Closed with unread bytes, TCP answers with a reset: an error is as good as an end.
    bad.read_to_end(&mut rest).ok();
    assert!(rest.is_empty());
    // Flags, then NBD_OPT_EXPORT_NAME "disk".
    good.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04disk").expect("sent");
    let mut reply = [0; 10];
    good.read_exact(&mut reply).expect("the other connection lives");
    assert_eq!(reply[..8], (64 * MIB as u64).to_be_bytes());
}
