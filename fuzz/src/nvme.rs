//! NVMe/TCP: units, commands and completions.

use wire::nvme::fabrics::{CONNECT_DATA_BYTES, ConnectData, Fabrics};
use wire::nvme::{Command, Completion, Sgl};
use wire::nvme_tcp::{Agreed, Alignment, Common, Pdu, Termination, digest};

/// A unit under whatever was agreed: refused with what the peer is told, or laid out inside its length and
/// written again as it was read.
pub fn nvme_tcp(bytes: &[u8]) {
    let [choice, bytes @ ..] = bytes else { return };
    let alignment = Alignment::new(choice >> 3).expect("up to 31");
    let agreed = Agreed { header_digest: choice & 1 != 0, data_digest: choice & 2 != 0, alignment };
    let Some(first) = bytes.first_chunk() else { return };
    let common = Common::parse(first);
    assert_eq!(common.octets(), *first);
    let layout = match common.layout(common.kind.direction(), agreed, 1 << 20) {
        Ok(layout) => layout,
        Err(fatal) => {
            assert!(fatal.information < 8, "a field of the common header");
            let (octets, len) = Termination { fatal, header: bytes }
                .octets(wire::nvme_tcp::Direction::ControllerToHost)
                .expect("whatever the header is");
            assert!(len <= octets.len());
            return;
        }
    };
    assert_eq!(layout.pdu_bytes(), u64::from(common.pdu_bytes));
    assert!(layout.data_at >= layout.header_bytes && layout.data_at <= 255);
    let Some(header) = bytes.get(..layout.header_bytes) else {
        assert!(layout.check_header_digest(bytes).is_err() || !layout.header_digest);
        return;
    };
    let mut whole = header.to_vec();
    whole.extend(digest(header).to_le_bytes());
    assert_eq!(layout.check_header_digest(&whole), Ok(()));
    let Ok(pdu) = Pdu::parse(&layout, header) else { return };
    // Data may begin later than it must, and reserved bits may be set; what is said is the same.
    let Ok(head) = pdu.head(layout.data_bytes, agreed) else { return };
    let again = Common::parse(head.octets().first_chunk().expect("a header"));
    let layout = again.layout(again.kind.direction(), agreed, 1 << 20).expect("written by ourselves");
    assert_eq!(layout.check_header_digest(head.octets()), Ok(()));
    assert_eq!(Pdu::parse(&layout, head.octets()), Ok(pdu));
    if let Pdu::Command(command) = pdu {
        nvme_command(&command);
    }
}

fn nvme_command(command: &Command) {
    if let Ok(sgl) = Sgl::parse(&command.sgl) {
        assert_eq!(Sgl::parse(&sgl.octets()), Ok(sgl));
        if let Ok(fabrics) = Fabrics::parse(command) {
            let again = fabrics.command(command.id, sgl).expect("it was read from one");
            assert_eq!(Fabrics::parse(&again), Ok(fabrics));
        }
    }
}

/// Commands, completions and the data of a connect command.
pub fn nvme(bytes: &[u8]) {
    if let Some(octets) = bytes.first_chunk() {
        let command = Command::parse(octets);
        assert_eq!(command.octets(), *octets);
        nvme_command(&command);
    }
    if let Some(octets) = bytes.first_chunk() {
        assert_eq!(Completion::parse(octets).octets(), *octets);
    }
    let mut data = [0; CONNECT_DATA_BYTES];
    let len = bytes.len().min(data.len());
    data[..len].copy_from_slice(&bytes[..len]);
    if let Ok(connect) = ConnectData::parse(&data) {
        let octets = connect.octets().expect("it was read from some");
        assert_eq!(ConnectData::parse(&octets), Ok(connect));
    }
}
