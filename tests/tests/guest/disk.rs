//! What a host does with a disk, however it is attached.

use tests::gateway::full;
use tests::guest::Guest;

use crate::place::Place;

const MIB: u64 = 1 << 20;
/// Size of a volume, as the configuration and as the guest say it.
pub const SIZE: &str = "256MiB";
const SIZE_BYTES: u64 = 256 * MIB;
/// Programs that these steps need.
pub const PROGRAMS: [&str; 6] = ["fio", "sfdisk", "blockdev", "mkfs.ext4", "e2fsck", "fstrim"];
/// What fio does in the guest.
const FIO: &str = "fio --name=verify --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16 \
                   --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --fsync=64 \
                   --output-format=terse --directory=/mnt";
/// What is written to be discarded.
const DISCARDED_MIB: u64 = 8;
/// Ends with status 0 if the sums of the tree that was copied still hold.
const SAME_SUMS: &str =
    "cd /mnt; sha256sum -c /run/sums >/run/compared 2>&1 || { grep -v OK$ /run/compared; exit 1; }";

/// A partition's device, of a disk whose name ends in a digit.
fn partition(device: &str) -> String {
    format!("{device}p1")
}

/// Attaches, partitions, makes a file system, copies a tree, writes and verifies, discards, checks, detaches, and
/// finds everything again.
pub fn used(place: &mut Place, device: &str, attach: &str, detach: &str) {
    let part = partition(device);
    // The libraries are most of the tree, and emulation is slow.
    let (tree, size) =
        if full() { ("modules programs libraries", "32m") } else { ("modules programs", "4m") };
    let guest = &mut place.guest;
    guest.run("attach", attach);
    let bytes = guest.run("size", &format!("blockdev --getsize64 {device}"));
    assert_eq!(bytes.trim(), SIZE_BYTES.to_string());
    let table = format!("printf 'label: gpt\\n,,L\\n' | sfdisk --quiet {device}; test -b {part}");
    guest.run("partition", &table);
    guest.run("make a file system", &format!("mkfs.ext4 -q {part}; mount {part} /mnt"));
    let copy =
        format!("cd /; cp -r {tree} /mnt; find {tree} -type f | sort | xargs sha256sum >/run/sums; sync");
    guest.run("copy a tree", &copy);
    guest.run("write and verify", &format!("{FIO} --size={size}; rm /mnt/verify*"));
    let fill =
        format!("dd if=/dev/zero of=/mnt/fill bs=1M count={DISCARDED_MIB} conv=fsync; rm /mnt/fill; sync");
    guest.run("write and remove", &fill);
    let said = guest.run("trim", "fstrim -v /mnt");
    // "/mnt: 123456 bytes trimmed"
    let trimmed = said.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    assert!(trimmed >= Some(DISCARDED_MIB * MIB), "{said}");
    guest.run("check", &format!("umount /mnt; e2fsck -fn {part}"));
    guest.run("detach", detach);
    guest.run("attach again", attach);
    guest.run("compare", &format!("mount -o ro {part} /mnt; {SAME_SUMS}"));
    guest.run("detach again", &format!("umount /mnt; {detach}"));
}

/// Makes a file system, copies a tree, and begins to write and verify without end. Returns a script that waits until
/// more was written.
pub fn load(guest: &mut Guest, device: &str) -> String {
    let tree = if full() { "modules programs libraries" } else { "modules" };
    guest.run(
        "make a file system",
        &format!("mkfs.ext4 -q {device}; mount -o errors=remount-ro {device} /mnt"),
    );
    let copy =
        format!("cd /; cp -r {tree} /mnt; find {tree} -type f | sort | xargs sha256sum >/run/sums; sync");
    guest.run("copy a tree", &copy);
    let load = format!(
        "rm -f /run/stop; (status=0; while [ $status = 0 ] && [ ! -e /run/stop ]; do {FIO} --size=8m || status=$?; \
         done; echo $status >/run/ended) >/run/fio 2>&1 &"
    );
    guest.run("begin to write and verify", &load);
    // Field 5 of the statistics is the number of writes that were answered. A disk of several paths, as NVMe's are,
    // counts at its paths.
    let name = device.trim_start_matches("/dev/").trim_end_matches("n1");
    let writes = format!("cat /sys/block/{name}*/stat | awk '{{s += $5}} END {{print s}}'");
    format!("end=$(($({writes}) + 200)); while [ $({writes}) -lt $end ]; do usleep 10000; done")
}

/// Ends the load, which met no error, and finds everything as it was written.
pub fn end_load(guest: &mut Guest, device: &str) {
    guest.run("verify", "touch /run/stop; until [ -e /run/ended ]; do usleep 100000; done; cat /run/fio; exit $(cat /run/ended)");
    guest.run("compare", SAME_SUMS);
    guest.run("check", &format!("umount /mnt; e2fsck -fn {device}"));
    let log = guest.log();
    let bad = ["I/O error", "EXT4-fs error", "Buffer I/O", "EXT4-fs warning"];
    assert!(!bad.iter().any(|words| log.contains(words)), "the guest's kernel met errors:\n{log}");
}

/// The daemon dies while fio verifies what it writes, comes back, and nobody in the guest hears of it. `again` is
/// what the guest has to do then.
pub fn outlives(place: &mut Place, device: &str, attach: &str, again: &str, detach: &str) {
    place.guest.run("attach", attach);
    let more = load(&mut place.guest, device);
    for round in 1..=if full() { 8 } else { 1 } {
        println!("kill {round}");
        place.guest.run("writes go on", &more);
        place.kill();
        place.start();
        place.guest.run("attach to the next", again);
    }
    let guest = &mut place.guest;
    guest.run("writes go on", &more);
    end_load(guest, device);
    guest.run("detach", detach);
}
