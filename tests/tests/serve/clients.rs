//! Clients that we did not write.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tests::gateway::folder;
use tests::netns::client;
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::client::Client;
use crate::place::{Place, file, memory};

pub const MIB: usize = 1 << 20;

/// Bytes that no two places share, with holes in between.
pub fn image(path: &Path, bytes: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut image = vec![0; bytes];
    for (at, page) in image.chunks_exact_mut(64 << 10).enumerate() {
        if at % 5 == 3 {
            continue;
        }
        for word in page.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_be_bytes());
        }
    }
    std::fs::write(path, image).expect("an image can be written");
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// A thin volume with each block size, and memory.
fn place(name: &'static str) -> Place {
    // The volumes lie beside the daemon's own files, so the folder must be known first.
    let at = folder(name);
    let exports = [
        file("file", &at.join("file"), "64MiB", 4096),
        file("small-blocks", &at.join("small-blocks"), "64MiB", 512),
        memory("memory", "64MiB", ""),
    ];
    Place::new(name, &exports.each_ref().map(String::as_str))
}

#[test]
fn libnbd_lists_and_copies_both_ways() {
    const TEST: &str = "libnbd_lists_and_copies_both_ways";
    let place = place("serve-libnbd");
    let source = place.folder.join("source");
    image(&source, 64 * MIB);
    let expected = std::fs::read(&source).expect("it was written");
    for uri in [Place::unix, Place::tcp] {
        let Some(list) = client(TEST, "nbdinfo", &["--list", &uri(&place, "")]) else { return place.stop() };
        for (name, block) in [("file", 4096), ("small-blocks", 512), ("memory", 4096)] {
            let section = list.split("export=").find(|section| section.starts_with(&format!("\"{name}\"")));
            let section = section.unwrap_or_else(|| panic!("{name} is listed: {list}"));
            assert!(section.contains("export-size: 67108864 (64M)"), "{section}");
            assert!(section.contains(&format!("block_size_minimum: {block}")), "{section}");
            assert!(section.contains("can_flush: true") && section.contains("can_fua: true"), "{section}");
        }
        for export in ["file", "small-blocks", "memory"] {
            let back = place.folder.join("back");
            let uri = uri(&place, export);
            if client(TEST, "nbdcopy", &["--flush", text(&source), &uri]).is_none() {
                return place.stop();
            }
            client(TEST, "nbdcopy", &[&uri, text(&back)]);
            assert!(std::fs::read(&back).expect("it was copied") == expected, "{uri} gives back what it got");
            std::fs::remove_file(back).expect("it can be removed");
        }
    }
    // From one volume to the other, both ours.
    client(TEST, "nbdcopy", &["--allocated", &place.unix("file"), &place.tcp("memory")]);
    place.stop();
}

#[test]
fn libnbd_finds_no_hole_where_zeroes_were_to_keep_their_place() {
    const TEST: &str = "libnbd_finds_no_hole_where_zeroes_were_to_keep_their_place";
    let place = place("serve-no-hole");
    let (hole, data) = (3, 0);
    for export in ["file", "small-blocks"] {
        let mut own = Client::unix(&place.socket(), export);
        for (flags, zeroed) in [(CommandFlags::NO_HOLE, data), (CommandFlags::NONE, hole)] {
            let zero = (Command::WRITE_ZEROES, flags.with(CommandFlags::FUA));
            own.send(zero, MIB as u64, 3 * MIB as u32, &[]).expect("the daemon reads");
            assert_eq!(own.reply().expect("the daemon answers").error, ErrorCode::OK);
            let Some(map) = client(TEST, "nbdinfo", &["--map", &place.unix(export)]) else {
                return place.stop();
            };
            // Offset, length, and bits: 1 a hole, 2 zeroes.
            let kind_at = |at: usize| {
                let fields = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
                let runs =
                    fields.map(|f| [f[0], f[1], f[2]].map(|field| field.parse::<usize>().expect("a number")));
                runs.filter(|[from, bytes, _]| (*from..from + bytes).contains(&at)).map(|run| run[2]).next()
            };
            let kinds = [MIB - 1, MIB, 4 * MIB - 1, 4 * MIB].map(kind_at);
            assert_eq!(kinds, [hole, zeroed, zeroed, hole].map(Some), "{flags:?}: {map}");
            let mut bytes = vec![1; 3 * MIB];
            own.read(MIB as u64, &mut bytes).expect("it is served");
            assert!(bytes.iter().all(|&byte| byte == 0));
        }
    }
    place.stop();
}

#[test]
fn fio_verifies_what_it_wrote_at_random() {
    const TEST: &str = "fio_verifies_what_it_wrote_at_random";
    let place = place("serve-fio");
    let jobs = [
        (place.unix("file"), "4k-128k", "4k"),
        (place.tcp("file"), "4k-128k", "4k"),
        (place.unix("small-blocks"), "512-64k", "512"),
        (place.tcp("small-blocks"), "512-64k", "512"),
    ];
    for (uri, sizes, align) in jobs {
        let uri = format!("--uri={uri}");
        let (sizes, align) = (format!("--bsrange={sizes}"), format!("--blockalign={align}"));
        let job = ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", &sizes, &align, "--iodepth=32"];
        let check = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--size=48m", "--fsync=64"];
        let form = ["--thread", "--output-format=terse", "--verify_state_save=0"];
        if client(TEST, "fio", &[&job[..], &check[..], &form[..]].concat()).is_none() {
            break;
        }
    }
    place.stop();
}

/// A trim that is to be durable is answered behind a flush of its own, which nothing but the answer to the trim announces.
#[test]
fn a_durable_trim_is_answered_though_its_client_says_no_more() {
    let place = place("serve-trim");
    for export in ["file", "small-blocks", "memory"] {
        let socket = UnixStream::connect(place.socket()).expect("the daemon listens");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let mut client = Client::new(Box::new(socket), export).expect("it has the export");
        for round in 0..20 {
            client.write(0, &vec![7; MIB]).expect("written");
            let cookie = client.send((Command::TRIM, CommandFlags::FUA), 0, MIB as u32, &[]).expect("sent");
            let answered = client.answer().unwrap_or_else(|why| panic!("{export}, round {round}: {why}"));
            assert_eq!(answered, cookie);
        }
    }
    place.stop();
}

/// What the tools of libnbd do not do: each command with its flags, and what has its place.
const SCRIPT: &str = r#"
import nbd

MIB = 1 << 20
for uri in URIS:
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    block = h.get_block_size(nbd.SIZE_MINIMUM)
    data = bytes((i * 7 + (i >> 9)) & 0xff for i in range(3 * MIB + block))
    h.pwrite(data, block)
    assert h.pread(len(data), block) == data
    h.pwrite(data[:MIB], 8 * MIB, nbd.CMD_FLAG_FUA)
    h.trim(MIB, 8 * MIB, nbd.CMD_FLAG_FUA)
    h.zero(block, 2 * MIB)
    assert h.pread(block, 2 * MIB) == bytes(block)
    assert h.pread(MIB, 8 * MIB) == bytes(MIB)
    h.flush()
    entries = []
    h.block_status(16 * MIB, 0, lambda context, at, some, err: entries.extend(some))
    assert entries[0::2] and sum(entries[0::2]) <= 16 * MIB, entries
    try:
        h.set_strict_mode(0)
        h.pread(block, h.get_size())
        assert False, "beyond its end"
    except nbd.Error as error:
        assert error.errno == "EINVAL", error
    cookies = [h.aio_pread(nbd.Buffer(4096), 4096 * i) for i in range(500)]
    while h.aio_in_flight() > 0:
        h.poll(-1)
    assert all(h.aio_command_completed(cookie) for cookie in cookies)
    h.shutdown()
"#;

#[test]
fn scripts_of_libnbd_reach_every_medium() {
    let place = place("serve-nbdsh");
    let exports = ["file", "small-blocks", "memory"];
    let uris: Vec<String> =
        exports.into_iter().flat_map(|export| [place.tcp(export), place.unix(export)]).collect();
    // The file of Debian, whatever other Python the machine has.
    let script = format!("URIS = {uris:?}\n{SCRIPT}");
    client("scripts_of_libnbd_reach_every_medium", "/usr/bin/python3", &["-c", &script]);
    place.stop();
}

#[test]
fn qemu_converts_compares_and_runs_its_bench() {
    const TEST: &str = "qemu_converts_compares_and_runs_its_bench";
    let place = place("serve-qemu");
    let source = place.folder.join("source");
    image(&source, 64 * MIB);
    for uri in [place.unix("file"), place.tcp("small-blocks"), place.tcp("memory")] {
        let to = ["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &uri];
        if client(TEST, "qemu-img", &to).is_none() {
            break;
        }
        client(TEST, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), &uri]);
        let back = place.folder.join("back.qcow2");
        client(TEST, "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&back)]);
        client(TEST, "qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&source), text(&back)]);
        let bench = ["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096"];
        client(TEST, "qemu-img", &[&bench[..], &[&uri]].concat());
        let writes = ["-w", "--pattern=165", "--flush-interval=100"];
        client(TEST, "qemu-img", &[&bench[..], &writes[..], &[&uri]].concat());
    }
    place.stop();
}
