//! Unix sockets that the daemon listens on, and the files that name them.

use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tracing::warn;

/// Removes a socket's file when the daemon ends, however it ends short of kill -9.
pub(crate) struct Unlink(pub PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Err(failure) = std::fs::remove_file(&self.0) {
            warn!("{} stays behind: {failure}", self.0.display());
        }
    }
}

/// Binds a path. A socket that a dead daemon left is replaced; a live one is not ([`ErrorKind::AddrInUse`]),
/// and nor is anything else.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, Unlink)> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(Error::new(ErrorKind::AlreadyExists, "there is a file of that name"));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
    }
    Ok((UnixListener::bind(path)?, Unlink(path.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_a_dead_daemon_left_is_replaced() {
        let path = std::env::temp_dir().join(format!("tidegate-unix-{}.sock", std::process::id()));
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path).err().unwrap().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        // Nobody listens on it any more, and its file is there still.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind(&path).unwrap();
        assert_eq!(bind(&path).err().unwrap().kind(), ErrorKind::AddrInUse);
        drop(bound);
        assert!(!path.exists());
    }
}
