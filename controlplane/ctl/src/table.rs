//! Columns for people.

use std::fmt;

/// Rows under a head.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|&word| word.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += &format!("{cell:width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Bytes in at most seven characters: 4096, 1.5GiB.
pub fn bytes(bytes: u64) -> String {
    let units = ["", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0}{}", units[unit])
    } else {
        format!("{value:.1}{}", units[unit])
    }
}

/// How long ago something was, in one number: 12 s, 5 min, 3 h, 2 d.
pub fn ago(at_ms: u64, now_ms: u64) -> String {
    // Clocks of two machines may differ.
    let seconds = now_ms.saturating_sub(at_ms) / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Reads a size like 512MiB, 10GiB or 40MB.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err("write a size like 512MiB, 10GiB or 40MB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a size like 512MiB, 10GiB or 40MB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is more than there is".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(vec!["1".into(), "disk".into()]);
        table.row(vec!["10".into(), "d".into()]);
        assert_eq!(table.to_string(), "ID  NAME\n1   disk\n10  d\n");
    }

    #[test]
    fn times_are_told_in_one_number() {
        let told = [0, 59_999, 60_000, 7_200_000, 172_800_000].map(|now_ms| ago(0, now_ms));
        assert_eq!(told, ["0 s", "59 s", "1 min", "2 h", "2 d"]);
        assert_eq!(ago(5_000, 0), "0 s");
    }

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!(parse_bytes("10GiB"), Ok(10 << 30));
        assert_eq!(parse_bytes("40MB"), Ok(40_000_000));
        assert_eq!(bytes(10 << 30), "10GiB");
        assert_eq!(bytes(1536), "1.5KiB");
        for wrong in ["", "GiB", "10 parsecs", "99999999999TiB", "-1"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
