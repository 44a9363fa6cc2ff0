//! One line of an invoice: from the fields of a CSV record to a [`CartItem`].
use crate::{
    cart::{CartId, CartItem},
    money::{Money, MoneyError},
};
use foldstream::{DomainEvent, InvalidStreamId, StreamId, Timestamp};

/// The columns that the header must name, in any order. Other columns are ignored.
pub const COLUMNS: [&str; 8] = [
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
];

/// A reason for which a line is refused. Other lines are not affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A quoted field does not end, or is followed by something other than a comma.
    #[error("a quoted field is not closed")]
    OpenQuote,
    /// The bytes are not UTF-8 text.
    #[error("the line is not UTF-8")]
    NotUtf8,
    /// The line has too many or too few fields.
    #[error("{found} fields instead of {expected}")]
    FieldCount {
        /// The number of fields in this line.
        found: usize,
        /// The number of fields in the header.
        expected: usize,
    },
    /// A field that must not be empty is empty.
    #[error("{column} is empty")]
    Empty {
        /// The column of the field.
        column: &'static str,
    },
    /// The invoice's number cannot be the id of an order.
    #[error("InvoiceNo cannot name an order: {0}")]
    InvoiceNo(InvalidStreamId),
    /// The quantity is not a whole number of 64 bits.
    #[error("Quantity {text:?} is not a whole number")]
    Quantity {
        /// The text of the field.
        text: String,
    },
    /// The invoice's date is not a date with a time.
    #[error("InvoiceDate {text:?} is not a time as in 2010-12-01 08:26:00")]
    InvoiceDate {
        /// The text of the field.
        text: String,
    },
    /// The price is not a decimal number.
    #[error("UnitPrice: {0}")]
    UnitPrice(MoneyError),
    /// The product of quantity and price cannot be held exactly.
    #[error("Quantity times UnitPrice: {0}")]
    Amount(MoneyError),
}

/// The position of each column in this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    at: [usize; COLUMNS.len()],
    width: usize,
}

impl Columns {
    /// Finds the columns in the header. The error lists the columns that are missing.
    pub(super) fn find(header: &csv::StringRecord) -> Result<Self, Vec<&'static str>> {
        // Some programs begin a file with a byte order mark.
        let names: Vec<_> = header
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim())
            .collect();
        let place = |column: &&str| names.iter().position(|name| name == column);
        let missing: Vec<_> = COLUMNS
            .into_iter()
            .filter(|column| place(column).is_none())
            .collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        let at = COLUMNS.map(|column| place(&column).unwrap_or_default());
        Ok(Self {
            at,
            width: names.len(),
        })
    }

    /// Reads one line as the id of its invoice and an item.
    pub(super) fn read(&self, fields: &csv::StringRecord) -> Result<(CartId, CartItem), LineError> {
        if fields.len() != self.width {
            return Err(LineError::FieldCount {
                found: fields.len(),
                expected: self.width,
            });
        }
        let [
            invoice,
            stock_code,
            description,
            quantity,
            date,
            price,
            customer,
            country,
        ] = self.at.map(|place| fields.get(place).unwrap_or_default());
        for (column, text) in [("InvoiceNo", invoice), ("StockCode", stock_code)] {
            if text.trim().is_empty() {
                return Err(LineError::Empty { column });
            }
        }
        let id = CartId::from(invoice);
        StreamId::new(crate::cart::CartEvent::AGGREGATE, &id).map_err(LineError::InvoiceNo)?;
        let item = CartItem {
            // Codes and names are not normalized: 85123A and 85123a are two products.
            stock_code: stock_code.into(),
            description: description.into(),
            quantity: quantity_of(quantity)?,
            unit_price: price
                .trim()
                .parse::<Money>()
                .map_err(LineError::UnitPrice)?,
            invoiced_at: time_of(date)?,
            customer: Some(customer)
                .filter(|text| !text.is_empty())
                .map(String::from),
            country: country.into(),
        };
        item.amount().map_err(LineError::Amount)?;
        Ok((id, item))
    }
}

fn quantity_of(text: &str) -> Result<i64, LineError> {
    let quantity = text.trim().parse();
    quantity.map_err(|_| LineError::Quantity { text: text.into() })
}

/// Parses a time as UTC, because the file names no zone. Seconds may be missing.
fn time_of(text: &str) -> Result<Timestamp, LineError> {
    let trimmed = text.trim();
    let seconds = if trimmed.len() == "2010-12-01 08:26".len() {
        ":00"
    } else {
        ""
    };
    let with_zone = format!("{trimmed}{seconds}Z").parse();
    let at = with_zone.or_else(|_| trimmed.parse());
    at.map_err(|_| LineError::InvoiceDate { text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: [&str; 8]) -> Result<(CartId, CartItem), LineError> {
        let columns = Columns::find(&COLUMNS.to_vec().into()).unwrap();
        columns.read(&fields.to_vec().into())
    }

    const LINE: [&str; 8] = [
        "536365",
        "85123A",
        "T-LIGHT HOLDER",
        "6",
        "2010-12-01 08:26:00",
        "2.55",
        "17850.0",
        "France",
    ];

    fn with(column: usize, text: &str) -> Result<(CartId, CartItem), LineError> {
        let mut fields = LINE;
        fields[column] = text;
        read(fields)
    }

    #[test]
    fn a_line_is_read_as_it_stands() {
        let (id, item) = read(LINE).unwrap();
        assert_eq!(id.as_str(), "536365");
        assert_eq!((item.stock_code.as_str(), item.quantity), ("85123A", 6));
        assert_eq!(item.unit_price.to_string(), "2.55");
        assert_eq!(item.invoiced_at.to_string(), "2010-12-01T08:26:00.000000Z");
        assert_eq!(item.customer.as_deref(), Some("17850.0"));
        assert_eq!(item.amount().unwrap().to_string(), "15.30");
    }

    #[test]
    fn zero_negative_and_empty_values_that_mean_something_are_no_errors() {
        assert_eq!(with(3, "-6").unwrap().1.quantity, -6);
        assert_eq!(with(3, "0").unwrap().1.quantity, 0);
        assert_eq!(
            with(5, "-11062.06").unwrap().1.unit_price.to_string(),
            "-11062.06"
        );
        assert_eq!(with(2, "").unwrap().1.description, "");
        assert_eq!(with(6, "").unwrap().1.customer, None);
        assert_eq!(with(1, "85123a").unwrap().1.stock_code, "85123a");
        assert_eq!(with(4, "2010-12-01 08:26").unwrap(), read(LINE).unwrap());
    }

    #[test]
    fn each_malformed_field_is_named() {
        let refusal = |column, text: &str| with(column, text).unwrap_err().to_string();
        assert_eq!(refusal(0, " "), "InvoiceNo is empty");
        assert_eq!(refusal(1, ""), "StockCode is empty");
        assert_eq!(refusal(3, "six"), "Quantity \"six\" is not a whole number");
        assert_eq!(refusal(3, "1.5"), "Quantity \"1.5\" is not a whole number");
        assert!(refusal(4, "yesterday").starts_with("InvoiceDate \"yesterday\" is not a time"));
        assert!(refusal(4, "2010-02-30 08:26:00").starts_with("InvoiceDate"));
        assert_eq!(
            refusal(5, "1e3"),
            "UnitPrice: \"1e3\" is not an amount as in 12.50"
        );
        assert!(refusal(0, &"9".repeat(600)).starts_with("InvoiceNo cannot name an order: "));
        assert!(
            refusal(5, "7922816251426433759354395.0335").starts_with("Quantity times UnitPrice")
        );
    }

    #[test]
    fn columns_are_found_by_name_in_any_order() {
        let mut header = COLUMNS;
        header.reverse();
        let mut line = LINE;
        line.reverse();
        let columns = Columns::find(&header.to_vec().into()).unwrap();
        assert_eq!(columns.read(&line.to_vec().into()), read(LINE));
    }

    #[test]
    fn a_header_without_a_column_is_refused_by_its_name() {
        let header = csv::StringRecord::from(COLUMNS[..6].to_vec());
        assert_eq!(Columns::find(&header), Err(vec!["CustomerID", "Country"]));
    }
}
