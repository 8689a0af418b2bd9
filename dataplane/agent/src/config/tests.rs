//! The file as a person gets it wrong, and right.

use std::path::Path;

use super::*;
use engine::port::PortSpec;

const EXAMPLE: &str = include_str!("../../../../docs/dataplane.example.toml");

/// A generator, a socket underlay and one tenant between them.
pub(super) const BASE: &str = r#"
    [[port]]
    name = "gen"
    driver = "generator"
    [[port]]
    name = "uplink"
    driver = "udp"
    listen = "127.0.0.1:4789"
    [[underlay]]
    port = "uplink"
    addresses = ["127.0.0.1/8"]
    [[tenant]]
    name = "blue"
    vni = 100
    attachments = [{ port = "gen", sources = [{ ip = "10.0.0.1", mac = "02:00:00:00:00:01" }] }]
    remotes = [{ ip = "10.0.0.2", mac = "02:00:00:00:00:02", vtep = "127.0.0.2" }]
"#;

const VOLUME: &str = "[[volume]]\nname = \"disk\"\ntenant = \"blue\"\nserver = \"10.0.0.2:9\"\n";

fn lowered(text: &str) -> Result<(engine::Plan, engine::Snapshot), LowerError> {
    let file = parse(text).expect("the text is TOML with known keys");
    lower::metrics_address(&file)?;
    let plan = lower::plan(&file)?;
    let snapshot = lower::snapshot(&file, &[], 1, &[], &mut Names::default(), None)?;
    Ok((plan, snapshot))
}

/// Lowers the base with `from` replaced by `to` and with `more` at its end; what is wrong with it.
fn wrong(from: &str, to: &str, more: &str) -> LowerError {
    assert!(BASE.contains(from), "{from}");
    match lowered(&format!("{}\n{more}", BASE.replace(from, to))) {
        Ok(_) => panic!("was taken: {from} -> {to}, {more}"),
        Err(error) => error,
    }
}

fn more(more: &str) -> String {
    wrong("", "", more).to_string()
}

#[test]
fn the_base_and_the_empty_file_are_right() {
    let (plan, snapshot) = lowered(&format!("{BASE}{VOLUME}")).unwrap();
    assert_eq!((plan.workers.len(), plan.ports.len()), (1, 2));
    assert_eq!(snapshot.throttle.volumes.len(), 1);
    lowered("").unwrap();
}

#[test]
fn the_example_is_right_and_shows_every_key() {
    let (plan, snapshot) = lowered(EXAMPLE).unwrap();
    plan.check().unwrap();
    assert_eq!(plan.ports.len(), 4);
    assert!(plan.trap_port.is_some());
    assert_eq!(snapshot.throttle.volumes.len(), 3);
    assert_eq!(snapshot.idle, engine::idle::IdleParams::default(), "the example shows the defaults");
    // The keys are the public fields of the file's structs.
    let fields = include_str!("file.rs").lines().filter_map(|line| line.strip_prefix("    pub "));
    for field in fields {
        let key = field.split(':').next().unwrap();
        let shown = EXAMPLE
            .lines()
            .any(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == key));
        assert!(shown, "{key} is not in docs/dataplane.example.toml");
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name() {
    let error = parse("[frames]\njumbo_cuont = 3\n").unwrap_err();
    assert!(error.contains("line 2") && error.contains("did you mean `jumbo_count`?"), "{error}");
    let error = parse("[[port]]\nname = \"a\"\ndriver = \"af_paket\"\n").unwrap_err();
    assert!(error.contains("did you mean `af_packet`?"), "{error}");
    let error = parse("[qqqq]\n").unwrap_err();
    assert!(error.contains("unknown field `qqqq`") && !error.contains("did you mean"), "{error}");
}

#[test]
fn wrong_types_and_units_are_refused_where_they_stand() {
    for (text, expected) in [
        ("[frames]\ncount = \"many\"", "line 2"),
        ("[idle]\nspin = \"10 parsecs\"", "\"10 parsecs\" is not a time such as"),
        ("[idle]\nspin = -1", "-1 is negative"),
        ("[throttle]\nbytes = \"fast\"", "\"fast\" is not a rate such as"),
        ("[[port]]\nname = \"a\"", "missing field `driver`"),
        ("= 3", "line 1"),
        ("[port]\nname = \"a\"\ndriver = \"sink\"", "there may be several: write [[port]]"),
        ("[[port]]\nname = \"a\"\ndriver = \"udp\"\nlisten = \"192.0.2.1\"", "an address needs its port"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_file_that_cannot_be_read_or_parsed_is_named() {
    let missing = read(Path::new("/nonexistent/dataplane.toml")).unwrap_err();
    assert!(matches!(missing, ReadError::Io { .. }));
    assert!(missing.to_string().starts_with("cannot read /nonexistent/dataplane.toml: "), "{missing}");
    let wrong = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs"))).unwrap_err();
    assert!(matches!(wrong, ReadError::Parse { .. }));
    assert!(wrong.to_string().contains("src/lib.rs: "), "{wrong}");
}

#[test]
fn texts_that_are_not_what_their_key_wants() {
    for (from, to, expected) in [
        ("02:00:00:00:00:01", "02:00:00:00:00", "is not a MAC address"),
        ("02:00:00:00:00:01", "02:00:00:00:00:01:02", "is not a MAC address"),
        ("02:00:00:00:00:01", "02:0:00:00:00:001", "is not a MAC address"),
        ("10.0.0.1", "10.0.0", "is not an address or prefix"),
        ("10.0.0.1", "10.0.0.0/33", "is not an address or prefix"),
        ("10.0.0.1", "10.0.0.0/x", "is not an address or prefix"),
        ("vtep = \"127.0.0.2\"", "vtep = \"there\"", "is not a tunnel endpoint"),
        ("127.0.0.1/8", "localhost", "is not an address or prefix"),
    ] {
        let error = wrong(from, to, "");
        assert!(matches!(error, LowerError::Text { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
    let error = more("[node]\nmetrics = \"yes\"");
    assert_eq!(error, "[node] metrics: \"yes\" is not an address such as \"127.0.0.1:9464\", nor \"off\"");
}

#[test]
fn names_that_nothing_has_come_with_the_nearest_that_something_has() {
    let red = "[[tenant]]\nname = \"red\"\nvni = 7\nattachments = [{ port = \"gin\" }]";
    let error = wrong("", "", red);
    assert!(matches!(error, LowerError::Unknown { .. }), "{error}");
    assert_eq!(error.to_string(), "tenant \"red\": there is no port \"gin\"; did you mean \"gen\"?");
    assert!(more(&VOLUME.replace("blue", "bleu")).contains("no tenant \"bleu\"; did you mean \"blue\"?"));
    let group = format!("{VOLUME}group = \"gld\"\n[[group]]\nname = \"gold\"");
    assert!(more(&group).contains("no group \"gld\"; did you mean \"gold\"?"));
    let rule = "[[rule]]\ntenant = \"blue\"\nto = \"10.0.9.9\"\naction = \"forward\"\n\
                vtep = \"127.0.0.3\"\nvolume = \"disk\"";
    assert_eq!(more(rule), "rule 1 (to \"10.0.9.9\"): there is no volume \"disk\"");
    assert!(more("[trap]\nport = \"zzz\"").ends_with("[trap]: there is no port \"zzz\""));
}

#[test]
fn names_are_unique() {
    for (kind, text) in [
        ("port \"gen\"", "[[port]]\nname = \"gen\"\ndriver = \"sink\"".to_owned()),
        ("tenant \"blue\"", "[[tenant]]\nname = \"blue\"\nvni = 7".to_owned()),
        ("volume \"disk\"", format!("{VOLUME}{VOLUME}")),
        ("group \"g\"", "[[group]]\nname = \"g\"\n[[group]]\nname = \"g\"".to_owned()),
    ] {
        let error = wrong("", "", &text);
        assert!(matches!(error, LowerError::Twice { .. }));
        assert_eq!(error.to_string(), format!("{kind} appears twice; names are unique"));
    }
}

#[test]
fn keys_that_are_missing_superfluous_or_out_of_range() {
    for (from, to, expected) in [
        ("listen = \"127.0.0.1:4789\"", "", "port \"uplink\": this driver needs listen"),
        ("driver = \"generator\"", "driver = \"af_packet\"", "port \"gen\": this driver needs interface"),
        (
            "driver = \"generator\"",
            "driver = \"sink\"\nloops = 2",
            "this driver has no use for loops; remove it",
        ),
        (
            "driver = \"generator\"",
            "driver = \"generator\"\nworker = 1",
            "worker 1 is named, but there is 1 worker, counted from 0",
        ),
        ("driver = \"generator\"", "driver = \"generator\"\nframe_bytes = 9000", "frame_bytes is 64 to 3400"),
        ("driver = \"generator\"", "driver = \"generator\"\nflows = 0", "flows is 1 to 65536"),
        ("driver = \"generator\"", "driver = \"generator\"\nfaults = { loss = 2.0 }", "are 0 to 1"),
        (
            "[[underlay]]\n    port = \"uplink\"\n    addresses = [\"127.0.0.1/8\"]",
            "",
            "serves only as an underlay",
        ),
        ("vni = 100", "vni = 16777216", "vni = 16777216 has more than 24 bits"),
        ("{ port = \"gen\",", "{ port = \"gen\", vlan = 4095,", "vlan = 4095; it is 1 to 4094"),
        ("[\"127.0.0.1/8\"]", "[\"127.0.0.1/8\", \"127.0.0.3/8\"]", "more than one of a family"),
        (
            "[\"127.0.0.1/8\"]",
            "[\"127.0.0.1/8\", \"2001:db8::1/64\"]",
            "address 2001:db8::1 is not reached by listen = \"127.0.0.1:4789\", a socket for IPv4 alone",
        ),
        ("port = \"uplink\"", "port = \"uplink\"\ndscp = 64", "dscp is \"copy\" or 0 to 63"),
        ("port = \"uplink\"", "port = \"uplink\"\ndscp = \"cpoy\"", "dscp is \"copy\" or 0 to 63"),
        (", mac = \"02:00:00:00:00:01\"", "", "the generator's source needs a mac"),
        (", mac = \"02:00:00:00:00:02\"", "", "the generator's remote needs a mac"),
        ("ip = \"10.0.0.1\"", "ip = \"2001:db8::1\"", "the generator makes IPv4"),
        ("attachments = [", "underlay = \"uplink\" # [", "a generator needs a tenant"),
    ] {
        let error = wrong(from, to, "");
        assert!(matches!(error, LowerError::Key { .. }), "{to}: {error}");
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
}

#[test]
fn an_endpoint_that_the_underlays_socket_does_not_carry_is_refused() {
    let error = wrong("vtep = \"127.0.0.2\"", "vtep = \"2001:db8::2\"", "").to_string();
    let expected = "tenant \"blue\": vtep 2001:db8::2 is not reached by listen = \"127.0.0.1:4789\", a socket \
                    for IPv4 alone; add a second udp port that listens on an IPv6 address";
    assert!(error.starts_with(expected), "{error}");
    let rule = "[[rule]]\ntenant = \"blue\"\nto = \"10.0.9.9\"\naction = \"forward\"\nvtep = \"2001:db8::3\"";
    assert!(
        more(rule).starts_with("rule 1 (to \"10.0.9.9\"): vtep 2001:db8::3 is not reached"),
        "{}",
        more(rule)
    );
    let six = BASE.replace("127.0.0.1:4789", "[2001:db8::1]:4789").replace("127.0.0.1/8", "2001:db8::1/64");
    assert!(lowered(&six).map(drop).unwrap_err().to_string().contains("listens on an IPv4 address"));
    lowered(&six.replace("127.0.0.2", "2001:db8::2")).unwrap();
}

#[test]
fn a_port_of_several_workers_is_a_queue_or_a_share_for_each() {
    let with = |port: &str| format!("[[worker]]\n[[worker]]\n[[worker]]\n[[port]]\nname = \"p\"\n{port}");
    let (plan, _) = lowered(&with(
        "driver = \"af_xdp\"\ninterface = \"eth0\"\nqueue = 4\nworkers = [2, 0]\nfaults = { seed = 7, loss = 0.5 }",
    ))
    .unwrap();
    let shares: Vec<(u16, usize, u64, u32)> = plan
        .ports
        .iter()
        .map(|port| match &port.spec {
            PortSpec::Faults(faults, inner) => match &**inner {
                PortSpec::Xdp(spec) => (port.id.0, port.worker, faults.seed, spec.queue),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(shares, [(0, 2, 7, 4), (0, 0, 8, 5)]);
    let packet = "driver = \"af_packet\"\ninterface = \"eth0\"\n";
    let (plan, _) = lowered(&with(&format!("{packet}workers = [0, 1]\nfanout_group = 3"))).unwrap();
    assert!(plan.ports.iter().map(|port| port.worker).eq([0, 1]));
    plan.check().unwrap();
    for (keys, expected) in [
        ("workers = [0, 1]", "add a number that nothing else uses"),
        ("workers = [0, 3]\nfanout_group = 3", "worker 3 is named, but there are 3 workers"),
        ("workers = [1, 1]\nfanout_group = 3", "names one of them twice"),
        ("worker = 0\nworkers = [0, 1]\nfanout_group = 3", "worker and workers are both given"),
        ("workers = [0, 1]\nfanout_group = 3\nrecord = { file = \"/tmp/a\" }", "share one file"),
    ] {
        let error = lowered(&with(&format!("{packet}{keys}"))).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{keys}: {error}");
    }
    let sink = lowered(&with("driver = \"sink\"\nworkers = [0, 1]")).map(drop).unwrap_err();
    assert!(sink.to_string().contains("only af_xdp and af_packet"), "{sink}");
}

#[test]
fn what_two_cannot_have_and_what_nobody_can() {
    let xdp = "\n[[port]]\nname = \"NAME\"\ndriver = \"af_xdp\"\ninterface = \"eth0\"\n";
    let twice = format!("{}{}", xdp.replace("NAME", "a"), xdp.replace("NAME", "b"));
    for (text, expected) in [
        ("[[worker]]\ncpu = 1\n[[worker]]\n[[worker]]\ncpu = 1", "workers 0 and 2 are both pinned to cpu 1"),
        ("[frames]\ncount = 0", "count = 0 leaves no frame"),
        (&*twice, "port \"b\": queue 0 of eth0 is already that of port \"a\""),
        (
            "[[port]]\nname = \"again\"\ndriver = \"udp\"\nlisten = \"127.0.0.1:4789\"\n\
             [[underlay]]\nport = \"again\"\naddresses = [\"127.0.0.1/8\"]",
            "port \"again\": listen = \"127.0.0.1:4789\" is already that of port \"uplink\"",
        ),
        (&xdp.replace("eth0", "a-name-beyond-all-bounds"), "no interface can have this name"),
        (&xdp.replace("eth0", "eth 0"), "no interface can have this name"),
        (&format!("{xdp}ring_frames = 1000"), "a power of two from"),
        (&format!("{}ring_frames = 7", xdp.replace("af_xdp", "af_packet")), "ring_frames is 7, it must be"),
        ("[node]\nname = \"a/b\"", "name = \"a/b\""),
        ("[node]\nname = \"\"", "name = \"\""),
    ] {
        let error = wrong("", "", text);
        assert!(matches!(error, LowerError::Key { .. }), "{text}: {error}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn rules_idle_and_metrics_out_of_range() {
    let rule = |rest: &str| more(&format!("[[rule]]\ntenant = \"blue\"\nto = \"10.0.9.9\"\n{rest}"));
    assert!(rule("action = \"forward\"").contains("action = \"forward\" needs a vtep"));
    assert!(
        rule("action = \"drop\"\nvtep = \"127.0.0.3\"").contains("only action = \"forward\" takes a vtep")
    );
    for text in ["max_sleep = \"2ms\"", "max_sleep = \"10ns\"", "stay_awake = \"1s\""] {
        assert!(more(&format!("[idle]\n{text}")).contains("max_sleep is 1us to 1ms"), "{text}");
    }
    let public = "[node]\nmetrics = \"0.0.0.0:9464\"\n";
    assert!(more(public).contains("is not on loopback; metrics_public = true allows it"));
    lowered(&format!("{BASE}{public}metrics_public = true")).unwrap();
    let off = parse("[node]\nmetrics = \"off\"").unwrap();
    assert_eq!(lower::metrics_address(&off).unwrap(), None);
}

#[test]
fn limits_that_cannot_be() {
    for (keys, expected) in [
        ("preset = \"gp2-like\"", "needs size"),
        ("preset = \"gp3-like\"\nbytes = { rate = \"1MB/s\" }", "needs packets.rate and bytes.rate"),
        (
            "preset = \"gp3-like\"\nbytes = { rate = \"1MB/s\", peak = \"2MB/s\" }\npackets = { rate = 3 }",
            "takes only the rates",
        ),
        ("bytes = { bands = [{ above = 0.5, charge = 0.5 }] }", "bands need a rate beside them"),
        ("bytes = { rate = 1, bands = [{ above = 1.0, charge = 0.5 }] }", "above is 0 to 0.999"),
        ("bytes = { rate = 1, debt = \"4GiB\" }", "debt is below 4GiB"),
        ("bytes = { rate = 0 }", "volume \"disk\": "),
        ("park = { frames = 0 }", "volume \"disk\": "),
    ] {
        let error = more(&format!("{VOLUME}{keys}"));
        assert!(error.contains(expected), "{keys}: {error}");
    }
    let error = wrong("", "", &format!("{VOLUME}weight = 0"));
    assert!(matches!(error, LowerError::Limits { .. }), "{error}");
    for text in ["[[group]]\nname = \"g\"\nbytes = 0", "[throttle]\npackets = 10\npackets_cap = 0"] {
        assert!(matches!(wrong("", "", text), LowerError::Pool { .. }), "{text}");
    }
    let five = "{ above = 0.1, charge = 0.5 }, ".repeat(5);
    let error = more(&format!("{VOLUME}bytes = {{ rate = 1, bands = [{five}] }}"));
    assert!(error.contains("at most 4 bands"), "{error}");
    let groups: String = (0..=engine::GROUPS_MAX).map(|n| format!("[[group]]\nname = \"g{n}\"\n")).collect();
    assert!(more(&groups).contains("there are more than 4096 groups"));
}

#[test]
fn what_the_overlay_refuses_is_told_by_name() {
    let error = wrong("", "", "[[tenant]]\nname = \"red\"\nvni = 100");
    assert!(matches!(error, LowerError::Table { .. }));
    assert!(error.to_string().ends_with("(tenant 0 is \"blue\", tenant 1 is \"red\")"), "{error}");
    let rule = "[[rule]]\ntenant = \"blue\"\nto = \"10.0.9.9\"\naction = \"drop\"\n";
    assert!(more(&rule.repeat(2)).contains("rule 0 goes to \"10.0.9.9\", rule 1 goes to"));
    let again = format!("{VOLUME}{}", VOLUME.replace("disk", "again"));
    assert!(more(&again).contains("volume 1 is \"again\""), "{}", more(&again));
    let error = more("[[underlay]]\nport = \"uplink\"\naddresses = [\"127.0.0.3/8\"]");
    assert!(error.ends_with("(port 1 is \"uplink\")"), "{error}");
}

#[test]
fn numbers_stay_with_their_names_and_are_not_given_on_at_once() {
    let mut numbers = Numbers::default();
    let load = |numbers: &mut Numbers, names: &[&str]| -> Vec<u32> {
        numbers.keep(names.iter().copied());
        names.iter().map(|name| numbers.of(name)).collect()
    };
    assert_eq!(load(&mut numbers, &["a", "b", "c"]), [0, 1, 2]);
    assert_eq!(load(&mut numbers, &["c", "a"]), [2, 0], "they stay");
    assert_eq!(load(&mut numbers, &["a", "d", "c"]), [0, 1, 2], "b went a load ago");
    assert_eq!(load(&mut numbers, &["a", "e", "c"]), [0, 3, 2], "d went just now");
    assert_eq!(load(&mut numbers, &["f", "c", "a"]), [1, 2, 0]);
    assert_eq!((numbers.get("f"), numbers.get("e"), numbers.name(2)), (Some(1), None, Some("c")));
    assert_eq!(numbers.end(), 4);
    assert_eq!(numbers.iter().collect::<Vec<_>>(), [("a", 0), ("c", 2), ("f", 1)]);
}

/// Takes a text as far as it goes.
fn try_all(text: &str) {
    if let Ok(file) = parse(text) {
        let _ = lower::metrics_address(&file);
        let _ = lower::plan(&file).map(|plan| plan.check());
        let _ = lower::snapshot(&file, &[], 1, &[], &mut Names::default(), None);
    }
}

#[test]
fn no_damage_to_the_example_panics() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (place, line) in lines.iter().enumerate() {
        let with = |changed: &str| {
            let mut lines = lines.clone();
            lines[place] = changed;
            try_all(&lines.join("\n"));
        };
        with("");
        with(&format!("{line}\n{line}"));
        let Some((key, value)) = line.split_once(" = ") else { continue };
        if value.starts_with(|c: char| c.is_ascii_digit()) {
            for number in [0, 1, 63, 64, 65_535, 65_536, i64::from(u32::MAX), i64::MAX, -1] {
                with(&format!("{key} = {number}"));
            }
        }
        for text in ["\"\"", "\"0\"", "\"/\"", "\"::/0\"", "\"0.0.0.0/0\"", "\"9999999999GiB\"", "[]", "true"]
        {
            with(&format!("{key} = {text}"));
        }
    }
}

proptest::proptest! {
    #[test]
    fn no_character_anywhere_panics(place in 0..EXAMPLE.len(), character: char) {
        let mut text = EXAMPLE.to_owned();
        if text.is_char_boundary(place) {
            text.insert(place, character);
            try_all(&text);
        }
    }
}

/// Anything that looks at all names for each name takes many minutes here.
#[test]
fn a_hundred_thousand_volumes_and_rules_are_read_and_exchanged() {
    let text = |name: char| {
        let mut text = BASE.replace("10.0.0.", "10.255.0.");
        for number in 0..100_000_u32 {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + number);
            text += &format!(
                "[[volume]]\nname = \"{name}{number}\"\ntenant = \"blue\"\nserver = \"{ip}:9\"\n\
                 bytes = {{ rate = \"1MB/s\" }}\n"
            );
            // The tenant's remote is a rule too, and its attachment's source.
            if number < 99_990 {
                text += &format!(
                    "[[rule]]\ntenant = \"blue\"\nto = \"{ip}\"\naction = \"forward\"\n\
                     vtep = \"127.0.0.2\"\nvolume = \"{name}{number}\"\n"
                );
            }
        }
        text
    };
    let file = parse(&text('v')).unwrap();
    let mut names = Names::default();
    let room = lower::plan(&file).unwrap().volumes_max;
    let first = lower::snapshot(&file, &[], 1, &[], &mut names, None).unwrap();
    assert_eq!(first.throttle.volumes.len(), 100_000);
    let file = parse(&text('w')).unwrap();
    let second = lower::snapshot(&file, &[], 2, &[], &mut names, Some(&first.tables)).unwrap();
    assert_eq!(second.throttle.volumes.len(), 100_000);
    assert!(names.volumes.end() <= room, "one reload may exchange all volumes");
}

#[test]
fn a_port_becomes_what_its_keys_say() {
    let text = r#"
        [[port]]
        name = "x"
        driver = "af_xdp"
        interface = "eth0"
        queue = 3
        ring_frames = 512
        busy_poll_frames = 8
        faults = { seed = 7, loss = 0.5, delay = 0.1, delay_by = "2ms" }
        record = { file = "/tmp/x.pcap", limit = "1MiB" }
    "#;
    let (plan, _) = lowered(text).unwrap();
    let PortSpec::Record(record, inner) = &plan.ports[0].spec else { panic!("{:?}", plan.ports[0].spec) };
    assert_eq!(record.bytes_max, 1 << 20);
    let PortSpec::Faults(faults, inner) = inner.as_ref() else { panic!("{inner:?}") };
    assert_eq!((faults.seed, faults.loss, faults.delay_ns), (7, 0.5, 2_000_000));
    let PortSpec::Xdp(xdp) = inner.as_ref() else { panic!("{inner:?}") };
    assert_eq!(
        (xdp.interface.as_str(), xdp.queue, xdp.ring_frames, xdp.busy_poll_frames),
        ("eth0", 3, 512, 8)
    );
}

/// What is wrong with exports.
fn unserved(text: &str) -> String {
    let file = parse(text).expect("the text is TOML with known keys");
    let refused = exports::listen(&file).err().or_else(|| exports::listen_nvme(&file).err());
    refused
        .or_else(|| exports::wanted(&file).err())
        .or_else(|| exports::controllers(&file).err())
        .or_else(|| exports::plan(&file).err())
        .map_or_else(|| panic!("was taken: {text}"), |e| e.to_string())
}

#[test]
fn exports_that_cannot_be() {
    const DISK: &str = "[[export]]\nname = \"disk\"\nmedium = \"memory\"\nsize = \"1MiB\"\n";
    const FILES: &str = "[[export]]\nname = \"a\"\nmedium = \"file\"\ndirectory = \"/v/one\"\n";
    const NQN: &str = "nqn.2026-11.com.example:b";
    let with = |more: &str| format!("{DISK}{more}");
    for (text, expected) in [
        (with("[nbd]\nlisten = [\"nbd\"]"), "an address with a port"),
        (with("[nbd]\nlisten = [\"0.0.0.0:10809\"]"), "set public = true"),
        (
            with(
                "[nbd]\nlisten = [\"[::]:10809\"]\ntls = { certificate = \"c\", key = \"k\", required = false }",
            ),
            "require it with tls = { .. }, or set public = true",
        ),
        (with("[nvme]\nlisten = [\"/run/nvme.sock\"]"), "an address with a port, like 127.0.0.1:4420"),
        (with("[nvme]\nlisten = [\"0.0.0.0:4420\"]"), "NVMe without TLS is neither encrypted nor"),
        (with("nqn = \"disk\""), "is no NVMe qualified name, like nqn."),
        (with("hosts = [\"nqn.2026-11.com.example:a\", \"me\"]"), "\"me\" is no NVMe qualified name"),
        (
            with(&format!("nqn = \"{NQN}\"\n{}nqn = \"{NQN}\"", DISK.replace("\"disk\"", "\"other\""))),
            "export \"disk\" is namespace 1 of nqn.2026-11.com.example:b; give one of them another",
        ),
        (with("[serve]\nmemory = \"32MiB\""), "memory is at least 64MiB"),
        (with("[serve]\nmemory = \"71MiB\"\n[[worker]]\n[[worker]]"), "at least 72MiB with 2 workers"),
        (with("[serve]\nmemory = \"65GiB\""), "memory is at most 64GiB"),
        (with("[serve]\nconnections = 0"), "connections is 1 to"),
        (with("worker = 1"), "there is no worker 1"),
        (with("block = 1024"), "block is 512 or 4096"),
        (with("create = true"), "belong to medium = \"file\""),
        (with("standby = true"), "belong to medium = \"file\""),
        (format!("{FILES}standby = true\nsize = \"1GiB\""), "it needs size, and identity as"),
        (format!("{FILES}identity = \"12\""), "is not an identity: 32 hexadecimal digits"),
        (format!("{FILES}identity = \"{}\"", "0".repeat(32)), "not all 0"),
        (with("[nvme]\ncontroller_first = 0"), "1 to 65519 are possible"),
        (with("[nvme]\ncontroller_first = 65500\ncontrollers = 21"), "1 to 65519 are possible"),
        (with("[nvme]\nqueues = 0"), "queues is 1 to 127, not 0"),
        (with("[nvme]\nqueues = 128"), "queues is 1 to 127, not 128"),
        (with("[nvme]\nqueue_entries = 31"), "queue_entries is 32 to 1024, not 31"),
        (with("[nvme]\nqueue_entries = 65535"), "queue_entries is 32 to 1024, not 65535"),
        (with(DISK), "export \"disk\" appears twice"),
        (DISK.replace("1MiB", "1000"), "whole number of blocks"),
        (DISK.replace("size = \"1MiB\"\n", ""), "size is missing"),
        (FILES.replace("/v", "v"), "an absolute path"),
        (format!("{FILES}create = true"), "size is missing"),
        (
            format!("{FILES}{}", FILES.replace("\"a\"", "\"b\"").replace("/v/one", "/v//one/.")),
            "export \"b\": export \"a\" has the same directory; a volume has one owner",
        ),
    ] {
        let refused = unserved(&text);
        assert!(refused.contains(expected), "{text}: {refused}");
    }
}

#[test]
fn volumes_share_what_they_keep_of_their_maps() {
    for (volumes, expected) in [(0, 512), (1, 512), (8, 512), (64, 64), (4096, 1)] {
        assert_eq!(exports::leaves(256 << 20, volumes), expected, "{volumes}");
    }
}
