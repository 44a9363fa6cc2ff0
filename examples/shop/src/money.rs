//! Money as an exact decimal in plain notation: `12.50`, never `1.25e1` and never a binary
//! fraction.
use rust_decimal::Decimal;
use std::{fmt, str::FromStr};

/// An exact amount in the shop's currency. Operations either are exact or fail; nothing is rounded.
///
/// The number of decimals is kept: a sum has as many as its most precise term, so that it does not
/// depend on the order of the terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(Decimal);

/// The error of a text that is not an amount, or of a result that cannot be held exactly.
///
/// An amount holds about 28 digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The text is not made of digits with at most one decimal point.
    #[error("{0:?} is not an amount as in 12.50")]
    NotAnAmount(String),
    /// The amount has more digits than can be held exactly.
    #[error("the amount has too many digits to be exact")]
    TooManyDigits,
}

impl Money {
    /// An amount of zero.
    pub const ZERO: Self = Self(Decimal::ZERO);

    /// Creates an amount from the smallest coin: 250 is 2.50.
    pub fn from_cents(cents: i64) -> Self {
        Self(Decimal::new(cents, 2))
    }

    /// Multiplies this amount by a quantity.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`] if the product cannot be held exactly.
    pub fn times(self, quantity: i64) -> Result<Self, MoneyError> {
        let units = self.0.mantissa().checked_mul(i128::from(quantity));
        Self::exact(units, self.0.scale())
    }

    /// Adds two amounts exactly.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`] if the sum cannot be held exactly.
    pub fn plus(self, other: Self) -> Result<Self, MoneyError> {
        let scale = self.0.scale().max(other.0.scale());
        let units = |money: Self| {
            let shift = 10i128.checked_pow(scale - money.0.scale())?;
            money.0.mantissa().checked_mul(shift)
        };
        let sum = units(self).zip(units(other));
        Self::exact(sum.and_then(|(a, b)| a.checked_add(b)), scale)
    }

    /// Subtracts `other` from this amount.
    ///
    /// # Errors
    /// [`MoneyError::TooManyDigits`] if the difference cannot be held exactly.
    pub fn minus(self, other: Self) -> Result<Self, MoneyError> {
        self.plus(Self(-other.0))
    }

    fn exact(units: Option<i128>, scale: u32) -> Result<Self, MoneyError> {
        let units = units.ok_or(MoneyError::TooManyDigits)?;
        Decimal::try_from_i128_with_scale(units, scale)
            .map(Self)
            .map_err(|_| MoneyError::TooManyDigits)
    }
}

impl FromStr for Money {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        // `Decimal` also reads `1_000`, which is not an amount in a price list.
        let plain = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+');
        let amount = text
            .bytes()
            .all(plain)
            .then(|| Decimal::from_str_exact(text));
        match amount {
            Some(Ok(amount)) => Ok(Self(amount)),
            Some(Err(
                rust_decimal::Error::Underflow | rust_decimal::Error::ExceedsMaximumPossibleValue,
            )) => Err(MoneyError::TooManyDigits),
            _ => Err(MoneyError::NotAnAmount(text.into())),
        }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Serializes an amount as text, because most readers take JSON numbers for binary fractions.
impl serde::Serialize for Money {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> serde::Deserialize<'de> for Money {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn money(text: &str) -> Money {
        text.parse().unwrap()
    }

    #[test]
    fn amounts_are_kept_as_written() {
        for text in [
            "0",
            "0.0",
            "2.55",
            "2.10",
            "-11062.06",
            "0.001",
            "79228162514264337593543950335",
        ] {
            assert_eq!(money(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "", "-", ".", "abc", "1e3", "1_000", "1,5", "£2", "1.2.3", "NaN",
        ] {
            let refused = text.parse::<Money>();
            assert_eq!(refused, Err(MoneyError::NotAnAmount(text.into())), "{text}");
        }
    }

    #[test]
    fn arithmetic_is_exact_or_refused() {
        assert_eq!(money("0.1").plus(money("0.2")), Ok(money("0.3")));
        assert_eq!(money("2.55").times(-6), Ok(money("-15.30")));
        let most = money("79228162514264337593543950335");
        assert_eq!(most.plus(money("1")), Err(MoneyError::TooManyDigits));
        assert_eq!(most.plus(money("0.1")), Err(MoneyError::TooManyDigits));
        assert_eq!(most.times(2), Err(MoneyError::TooManyDigits));
        let long = format!("0.{}", "1".repeat(29));
        assert_eq!(long.parse::<Money>(), Err(MoneyError::TooManyDigits));
    }

    #[test]
    fn the_text_of_a_sum_does_not_depend_on_the_order_of_its_terms() {
        let sum = |terms: &[&str]| {
            let total = terms
                .iter()
                .try_fold(Money::ZERO, |sum, term| sum.plus(money(term)));
            total.unwrap().to_string()
        };
        assert_eq!(sum(&["0.00", "1.5", "2"]), "3.50");
        assert_eq!(sum(&["2", "1.5", "0.00"]), "3.50");
        assert_eq!(sum(&["1.50", "-1.5"]), "0.00");
        assert_eq!(money("0.00").times(-1).unwrap().to_string(), "0.00");
    }

    #[test]
    fn amounts_are_text_in_json() {
        let json = serde_json::to_string(&money("2.50")).unwrap();
        assert_eq!(json, r#""2.50""#);
        assert_eq!(serde_json::from_str::<Money>(&json).unwrap(), money("2.50"));
        assert!(serde_json::from_str::<Money>("2.5").is_err());
    }
}
