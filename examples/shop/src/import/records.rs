//! Cuts a CSV file into records and counts its lines.
//!
//! The `csv` crate splits the fields, but it cannot continue after a malformed line: a quote that
//! is never closed swallows every line up to the next quote. This module therefore reads lines, and
//! joins only as many of them as make a well-formed record.
use super::line::LineError;
use std::{
    collections::VecDeque,
    io::{self, BufRead},
};

/// The most lines of one record, which has line breaks within quotes.
const MAX_LINES: usize = 50;

/// The records of a CSV file, each with the number of its first line (from 1).
#[derive(Debug)]
pub(super) struct Records<R> {
    input: R,
    /// Lines that were read in search of the end of a record, and turned out not to belong to it.
    ahead: VecDeque<Vec<u8>>,
    line: u64,
}

impl<R: BufRead> Records<R> {
    pub(super) const fn new(input: R) -> Self {
        Self {
            input,
            ahead: VecDeque::new(),
            line: 0,
        }
    }

    /// Returns the next record that is not blank, with its fields read by `parse`, or `None` at the
    /// end of the file.
    pub(super) fn next<T>(
        &mut self,
        parse: impl Fn(&csv::StringRecord) -> Result<T, LineError>,
    ) -> io::Result<Option<(u64, Result<T, LineError>)>> {
        let mut record = loop {
            let Some(line) = self.line()? else {
                return Ok(None);
            };
            if !line.trim_ascii().is_empty() {
                break line;
            }
        };
        let number = self.line;
        if shape(&record) != Shape::Open {
            return Ok(Some((
                number,
                split(&record).and_then(|fields| parse(&fields)),
            )));
        }
        let mut following = Vec::new();
        while shape(&record) == Shape::Open && following.len() + 1 < MAX_LINES {
            let Some(line) = self.line()? else { break };
            record.extend_from_slice(&line);
            following.push(line);
        }
        if shape(&record) == Shape::Closed
            && let Ok(value) = split(&record).and_then(|fields| parse(&fields))
        {
            return Ok(Some((number, Ok(value))));
        }
        self.line = number;
        for line in following.into_iter().rev() {
            self.ahead.push_front(line);
        }
        Ok(Some((number, Err(LineError::OpenQuote))))
    }

    /// Returns the next line with its line break.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = self.ahead.pop_front().unwrap_or_default();
        if line.is_empty() && self.input.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        Ok(Some(line))
    }
}

/// The state of the quotes at the end of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Every quoted field is closed, and a comma or the end follows it.
    Closed,
    /// Every quoted field is closed, but other text follows a closing quote.
    ///
    /// On one line that is sloppy. Over several lines it is more likely that each has a stray
    /// quote.
    Sloppy,
    /// The text ends within a quoted field.
    Open,
}

fn shape(text: &[u8]) -> Shape {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        Plain,
        Quoted,
        AfterQuote,
    }
    let (mut at, mut sloppy) = (At::Start, false);
    for byte in text {
        at = match (at, byte) {
            (At::Start | At::AfterQuote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::AfterQuote,
            (At::Quoted, _) => At::Quoted,
            (_, b',' | b'\r' | b'\n') => At::Start,
            (before, _) => {
                sloppy |= before == At::AfterQuote;
                At::Plain
            }
        };
    }
    match at {
        At::Quoted => Shape::Open,
        _ if sloppy => Shape::Sloppy,
        _ => Shape::Closed,
    }
}

fn split(record: &[u8]) -> Result<csv::StringRecord, LineError> {
    let mut fields = csv::StringRecord::new();
    let mut reader = csv::ReaderBuilder::new();
    reader
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(record.len());
    // Reading from memory cannot fail, so the remaining error is text that is not UTF-8.
    let read = reader.from_reader(record).read_record(&mut fields);
    read.map_err(|_| LineError::NotUtf8)?;
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Vec<(u64, Result<Vec<String>, LineError>)> {
        let three = |fields: &csv::StringRecord| match fields.len() {
            3 => Ok(fields.iter().map(String::from).collect()),
            found => Err(LineError::FieldCount { found, expected: 3 }),
        };
        let mut records = Records::new(text.as_bytes());
        std::iter::from_fn(|| records.next(three).unwrap()).collect()
    }

    fn well(line: u64, fields: [&str; 3]) -> (u64, Result<Vec<String>, LineError>) {
        (line, Ok(fields.map(String::from).to_vec()))
    }

    #[test]
    fn quoted_fields_may_hold_commas_quotes_and_line_breaks() {
        assert_eq!(
            records("a,\"b,\"\"7\"\"\",c\r\nd,\"e\nf\",g\nh,i,j"),
            [
                well(1, ["a", "b,\"7\"", "c"]),
                well(2, ["d", "e\nf", "g"]),
                well(4, ["h", "i", "j"])
            ]
        );
    }

    #[test]
    fn blank_lines_count_and_are_no_records() {
        assert_eq!(
            records("\n\r\na,b,c\n\n\nd,e,f\n\n"),
            [well(3, ["a", "b", "c"]), well(6, ["d", "e", "f"])]
        );
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_one_line() {
        assert_eq!(
            records("a,\"b,c\nd,e,f\ng,h,i\n"),
            [
                (1, Err(LineError::OpenQuote)),
                well(2, ["d", "e", "f"]),
                well(3, ["g", "h", "i"])
            ]
        );
    }

    #[test]
    fn two_stray_quotes_do_not_make_one_record_of_two_lines() {
        assert_eq!(
            records("a,\"b,c\nd,\"e,f\ng,h,i\n"),
            [
                (1, Err(LineError::OpenQuote)),
                (2, Err(LineError::OpenQuote)),
                well(3, ["g", "h", "i"])
            ]
        );
    }

    #[test]
    fn the_search_for_a_closing_quote_ends() {
        let text = format!("a,\"b,c\n{}d,e\",f\n", "x,y,z\n".repeat(MAX_LINES));
        let found = records(&text);
        assert_eq!(found[0], (1, Err(LineError::OpenQuote)));
        assert_eq!(found.len(), MAX_LINES + 2);
        assert_eq!(
            found[MAX_LINES],
            well(MAX_LINES as u64 + 1, ["x", "y", "z"])
        );
    }

    #[test]
    fn text_after_a_closing_quote_on_one_line_is_read_as_it_stands() {
        assert_eq!(records("a,\"b\" c,d\n"), [well(1, ["a", "b c", "d"])]);
    }
}
