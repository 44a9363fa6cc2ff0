//! Reads a file of invoice lines as invoices, in two passes and little memory.
//!
//! The lines of an invoice may be anywhere in the file, but one invoice must become one command.
//! The first pass checks every line and notes where each invoice ends. The second pass yields an
//! invoice after reading its last line, and holds only the invoices that are not complete yet.
use super::{
    line::{COLUMNS, Columns, LineError},
    records::Records,
};
use crate::cart::{CartId, CartItem};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// All lines of one invoice.
#[derive(Clone, Debug, PartialEq)]
pub struct Invoice {
    /// The invoice's number, which becomes the order's id.
    pub id: CartId,
    /// The well-formed lines, in the order of the file.
    pub lines: Vec<CartItem>,
}

impl Invoice {
    /// Returns true if this invoice takes back an earlier one, so its number begins with C.
    ///
    /// Its quantities are already negative in the file, so nothing else depends on this.
    pub fn is_cancellation(&self) -> bool {
        self.id.as_str().starts_with('C')
    }
}

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct RefusedLine {
    /// The number of the line, from 1, with the header counted.
    pub line: u64,
    /// The reason for which it is refused.
    #[source]
    pub reason: LineError,
}

/// A file that cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The first line does not name all columns.
    #[error("{} has no column {}: its first line must name {}", path.display(), missing.join(", "), COLUMNS.join(","))]
    Header {
        /// The path of the file.
        path: PathBuf,
        /// The columns that are missing.
        missing: Vec<&'static str>,
    },
    /// The second pass found other lines than the first.
    #[error("{} changed while it was read: import it again", path.display())]
    Changed {
        /// The path of the file.
        path: PathBuf,
    },
}

/// A file that was checked, with the line on which each invoice ends.
#[derive(Clone, Debug)]
pub struct InvoiceFile {
    path: PathBuf,
    last_lines: HashMap<CartId, u64>,
    lines: u64,
    refused: u64,
}

impl InvoiceFile {
    /// Checks every line and passes those that cannot be read to `refused`.
    ///
    /// # Errors
    /// [`FileError`] if nothing in the file can be read.
    pub fn check(path: &Path, mut refused: impl FnMut(RefusedLine)) -> Result<Self, FileError> {
        let mut lines = Lines::open(path)?;
        let mut file = Self {
            path: path.into(),
            last_lines: HashMap::new(),
            lines: 0,
            refused: 0,
        };
        while let Some(line) = lines.next()? {
            match line {
                Ok((number, id, _)) => {
                    file.lines += 1;
                    file.last_lines.insert(id, number);
                }
                Err(line) => {
                    file.refused += 1;
                    refused(line);
                }
            }
        }
        Ok(file)
    }

    /// Returns the number of invoices that have at least one well-formed line.
    pub fn invoices(&self) -> usize {
        self.last_lines.len()
    }

    /// Returns the number of well-formed lines.
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the number of lines that cannot be read.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Reads the invoices. Each is yielded at its last line.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be opened; the iterator yields it if reading fails later.
    pub fn read(&self) -> Result<impl Iterator<Item = Result<Invoice, FileError>>, FileError> {
        let lines = Lines::open(&self.path)?;
        let reading = Reading {
            file: self,
            lines,
            open: HashMap::new(),
            left: self.last_lines.len(),
        };
        Ok(reading)
    }
}

/// The state of the second pass.
struct Reading<'a, R> {
    file: &'a InvoiceFile,
    lines: Lines<R>,
    open: HashMap<CartId, Vec<CartItem>>,
    left: usize,
}

impl<R: BufRead> Iterator for Reading<'_, R> {
    type Item = Result<Invoice, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.invoice().transpose()
    }
}

impl<R: BufRead> Reading<'_, R> {
    fn invoice(&mut self) -> Result<Option<Invoice>, FileError> {
        let changed = || FileError::Changed {
            path: self.file.path.clone(),
        };
        while let Some(line) = self.lines.next()? {
            let Ok((number, id, item)) = line else {
                continue;
            };
            let last = *self.file.last_lines.get(&id).ok_or_else(changed)?;
            if number > last {
                return Err(changed());
            }
            let mut lines = self.open.remove(&id).unwrap_or_default();
            lines.push(item);
            if number == last {
                self.left -= 1;
                return Ok(Some(Invoice { id, lines }));
            }
            self.open.insert(id, lines);
        }
        if self.left == 0 {
            Ok(None)
        } else {
            Err(changed())
        }
    }
}

type GoodLine = (u64, CartId, CartItem);

/// One pass over the lines after the header.
struct Lines<R> {
    path: PathBuf,
    records: Records<R>,
    columns: Columns,
}

impl Lines<BufReader<File>> {
    fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|source| FileError::Io {
            path: path.into(),
            source,
        })?;
        Self::new(path, BufReader::new(file))
    }
}

impl<R: BufRead> Lines<R> {
    fn new(path: &Path, input: R) -> Result<Self, FileError> {
        let mut records = Records::new(input);
        let header = records.next(|header| Ok(Columns::find(header)));
        let header = header.map_err(|source| FileError::Io {
            path: path.into(),
            source,
        })?;
        let columns = match header {
            Some((_, Ok(columns))) => columns,
            // The file is empty, or its first line is not even CSV.
            _ => Err(COLUMNS.to_vec()),
        };
        let columns = columns.map_err(|missing| FileError::Header {
            path: path.into(),
            missing,
        })?;
        Ok(Self {
            path: path.into(),
            records,
            columns,
        })
    }

    fn next(&mut self) -> Result<Option<Result<GoodLine, RefusedLine>>, FileError> {
        let record = self.records.next(|fields| self.columns.read(fields));
        let record = record.map_err(|source| FileError::Io {
            path: self.path.clone(),
            source,
        })?;
        Ok(record.map(|(line, read)| match read {
            Ok((id, item)) => Ok((line, id, item)),
            Err(reason) => Err(RefusedLine { line, reason }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HEADER: &str =
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country";

    fn file(lines: &[&str]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            file.path(),
            format!("{HEADER}\r\n{}\r\n", lines.join("\r\n")),
        )
        .unwrap();
        file
    }

    fn check(path: &Path) -> (InvoiceFile, Vec<String>) {
        let mut refused = Vec::new();
        let file = InvoiceFile::check(path, |line| refused.push(line.to_string())).unwrap();
        (file, refused)
    }

    fn read(file: &InvoiceFile) -> Result<Vec<(String, Vec<String>)>, FileError> {
        let codes = |invoice: Invoice| {
            let lines = invoice
                .lines
                .into_iter()
                .map(|line| line.stock_code)
                .collect();
            (invoice.id.to_string(), lines)
        };
        file.read()?.map(|invoice| Ok(codes(invoice?))).collect()
    }

    #[test]
    fn lines_of_one_invoice_are_joined_wherever_they_stand() {
        let csv = file(&[
            "1,a,,1,2010-12-01 08:26:00,1.0,,France",
            "2,b,,1,2010-12-01 08:26:00,1.0,,France",
            "1,c,,1,2010-12-01 08:26:00,1.0,,France",
            "C3,d,,-1,2010-12-01 08:26:00,1.0,,France",
            "1,a,,1,2010-12-01 08:26:00,1.0,,France",
        ]);
        let (file, refused) = check(csv.path());
        assert_eq!((file.invoices(), file.lines(), refused.len()), (3, 5, 0));
        let codes = |codes: &[&str]| codes.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            read(&file).unwrap(),
            [
                ("2".into(), codes(&["b"])),
                ("C3".into(), codes(&["d"])),
                ("1".into(), codes(&["a", "c", "a"])),
            ]
        );
    }

    #[test]
    fn malformed_lines_are_named_by_number_and_the_rest_goes_on() {
        let csv = file(&[
            "1,a,,1,2010-12-01 08:26:00,1.0,,France",
            "1,b,,one,2010-12-01 08:26:00,1.0,,France",
            "",
            "2,c,\"TRAY, LARGE,1,2010-12-01 08:26:00,1.0,,France",
            "1,d,too,few",
            "2,e,,1,2010-12-01 08:26:00,1.0,,France",
        ]);
        let (file, refused) = check(csv.path());
        assert_eq!(
            refused,
            [
                "line 3: Quantity \"one\" is not a whole number",
                "line 5: a quoted field is not closed",
                "line 6: 4 fields instead of 8",
            ]
        );
        assert_eq!((file.lines(), file.refused()), (2, 3));
        assert_eq!(read(&file).unwrap().len(), 2);
    }

    #[test]
    fn text_that_is_not_utf8_costs_one_line() {
        let csv = file(&["1,a,,1,2010-12-01 08:26:00,1.0,,France"]);
        let mut bytes = fs::read(csv.path()).unwrap();
        bytes.extend_from_slice(b"1,b,\xA31 OFF,1,2010-12-01 08:26:00,1.0,,France\n");
        fs::write(csv.path(), bytes).unwrap();
        let (file, refused) = check(csv.path());
        assert_eq!(
            (file.lines(), refused.as_slice()),
            (1, &["line 3: the line is not UTF-8".to_string()][..])
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_column() {
        let csv = tempfile::NamedTempFile::new().unwrap();
        let line = "1,a,,1,2010-12-01 08:26:00,1.0,,France";
        fs::write(csv.path(), format!("\u{feff}{HEADER}\n{line}")).unwrap();
        assert_eq!(check(csv.path()).0.lines(), 1);
    }

    #[test]
    fn a_file_without_header_or_without_anything_says_what_it_needs() {
        let csv = tempfile::NamedTempFile::new().unwrap();
        for text in [
            "",
            "1,a,,1,2010-12-01 08:26:00,1.0,,France\n",
            "\"never closed\n",
        ] {
            fs::write(csv.path(), text).unwrap();
            let error = InvoiceFile::check(csv.path(), |_| ()).unwrap_err();
            assert!(matches!(&error, FileError::Header { missing, .. } if missing.len() == 8));
            assert!(error.to_string().contains(HEADER), "{error}");
        }
    }

    #[test]
    fn a_file_that_changes_under_the_import_is_noticed() {
        let csv = file(&["1,a,,1,2010-12-01 08:26:00,1.0,,France"]);
        let (checked, _) = check(csv.path());
        let line = |id: &str| format!("{id},a,,1,2010-12-01 08:26:00,1.0,,France");
        for lines in [
            vec![line("1"), line("1")],
            vec![line("1"), line("2")],
            vec![],
        ] {
            fs::write(csv.path(), format!("{HEADER}\n{}\n", lines.join("\n"))).unwrap();
            assert!(
                matches!(read(&checked), Err(FileError::Changed { .. })),
                "{lines:?}"
            );
        }
    }
}
