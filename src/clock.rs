//! Time and identity as values and as parameters: [`Timestamp`], [`Clock`], [`IdSource`].
//!
//! The core never asks the system for the time or for randomness by itself. Code that needs them
//! takes a [`Clock`] and an [`IdSource`], so that a simulation with a seed can be repeated bit for
//! bit.
use crate::{CommitId, ports::Revision};
use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// An instant in microseconds since 1970-01-01T00:00:00Z, displayed as RFC 3339 with six decimals.
///
/// The text form covers the years 0000 to 9999, from [`Timestamp::MIN`] to [`Timestamp::MAX`]. A
/// commit recorded outside these years [cannot be appended](crate::ports::Append::validate), since
/// no record on the bus could carry its time. Arithmetic saturates at the limits of `i64`.
///
/// # Example
/// ```
/// use foldstream::Timestamp;
/// let at: Timestamp = "2026-01-01T00:00:00.000001Z".parse()?;
/// assert_eq!(at.as_micros(), 1_767_225_600_000_001);
/// assert_eq!(at.to_string(), "2026-01-01T00:00:00.000001Z");
/// # Ok::<(), foldstream::InvalidTimestamp>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The first instant that has a text form: 0000-01-01T00:00:00.000000Z.
    pub const MIN: Self = Self(-62_167_219_200_000_000);
    /// The last instant that has a text form: 9999-12-31T23:59:59.999999Z.
    pub const MAX: Self = Self(253_402_300_799_999_999);

    /// Creates a timestamp from microseconds since the Unix epoch.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Returns the microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the present time by the system's clock. A clock before 1970 is read as 1970.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// Returns the instant that is `by` later.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let micros = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// Returns the time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// The error returned for a text that is not an RFC 3339 time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a time as in 2026-01-31T23:59:59.000000Z")]
pub struct InvalidTimestamp {
    text: String,
}

const DAY: i64 = 86_400_000_000;

/// Returns the days since 1970-01-01 of a civil date (Howard Hinnant's algorithm, proleptic
/// Gregorian calendar).
fn days_of_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

/// Returns the year, month and day of [`days_of_civil`].
fn civil_of_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_of_days(self.0.div_euclid(DAY));
        let micros = self.0.rem_euclid(DAY);
        let s = micros / 1_000_000;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
            s / 3600,
            s / 60 % 60,
            s % 60,
            micros % 1_000_000
        )
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    /// Parses RFC 3339 with `Z` or an offset and up to nine decimals. Digits after the microseconds
    /// are cut off.
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        parse_rfc3339(text).ok_or_else(|| InvalidTimestamp { text: text.into() })
    }
}

fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let digits = |from: usize, len: usize| -> Option<i64> {
        let part = bytes.get(from..from + len)?;
        part.iter().try_fold(0i64, |n, b| {
            b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0'))
        })
    };
    let is = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|b| allowed.contains(b));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (digits(0, 4)?, digits(5, 2)?, digits(8, 2)?);
    let (hour, minute, second) = (digits(11, 2)?, digits(14, 2)?, digits(17, 2)?);
    if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_of_civil(year, month, day);
    // A day that the month does not have comes back as another date.
    if civil_of_days(days) != (year, month, day) {
        return None;
    }
    let mut at = 19;
    let mut fraction = 0;
    if is(at, b".") {
        let len = bytes[at + 1..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        if len == 0 || len > 9 {
            return None;
        }
        let kept = len.min(6);
        fraction = digits(at + 1, kept)? * 10i64.pow(6 - u32::try_from(kept).ok()?);
        at += 1 + len;
    }
    let offset_minutes = match bytes.get(at)? {
        b'Z' | b'z' if bytes.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if bytes.len() == at + 6 && is(at + 3, b":") => {
            let minutes = digits(at + 1, 2)? * 60 + digits(at + 4, 2)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let seconds = hour * 3600 + minute * 60 + second - offset_minutes * 60;
    let at = Timestamp(days * DAY + seconds * 1_000_000 + fraction);
    // An offset may lead out of the years that the text form covers.
    (Timestamp::MIN..=Timestamp::MAX)
        .contains(&at)
        .then_some(at)
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_i64(self.0)
    }
}
impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        i64::deserialize(d).map(Self)
    }
}

/// The source of the time for the core.
///
/// # Example
/// A clock for tests, which stands still:
/// ```
/// use foldstream::{Clock, Timestamp};
///
/// #[derive(Debug)]
/// struct Fixed(Timestamp);
///
/// impl Clock for Fixed {
///     fn now(&self) -> Timestamp {
///         self.0
///     }
/// }
///
/// let clock = Fixed("2026-01-01T00:00:00Z".parse()?);
/// assert_eq!(clock.now().to_string(), "2026-01-01T00:00:00.000000Z");
/// # Ok::<(), foldstream::InvalidTimestamp>(())
/// ```
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the present time.
    fn now(&self) -> Timestamp;
}

/// The clock of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The source of fresh ids for the core. A source with a seed makes a simulation repeatable.
///
/// # Example
/// A source for tests, which counts:
/// ```
/// use foldstream::{CommitId, IdSource, ports::Revision};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// #[derive(Debug, Default)]
/// struct Counter(AtomicU64);
///
/// impl IdSource for Counter {
///     fn commit_id(&self) -> CommitId {
///         CommitId::from_u128(self.0.fetch_add(1, Ordering::Relaxed).into())
///     }
///     fn revision(&self) -> Revision {
///         Revision::from_u128(self.0.fetch_add(1, Ordering::Relaxed).into())
///     }
/// }
///
/// let ids = Counter::default();
/// assert_ne!(ids.commit_id(), ids.commit_id());
/// ```
pub trait IdSource: fmt::Debug + Send + Sync + 'static {
    /// Returns a commit id that was never used before (UUIDv7).
    fn commit_id(&self) -> CommitId;
    /// Returns the id for one write of one control row: 128 random bits that were never used
    /// before.
    fn revision(&self) -> Revision;
}

/// The source of ids that uses the system's clock and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;
impl IdSource for SystemIds {
    fn commit_id(&self) -> CommitId {
        CommitId::from(Uuid::now_v7())
    }
    fn revision(&self) -> Revision {
        Revision::from_u128(fastrand::u128(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_time_are_inverse() {
        for micros in [
            0,
            1,
            -1,
            951_782_400_000_000,
            1_767_225_600_123_456,
            -62_135_596_800_000_000,
            Timestamp::MIN.as_micros(),
            Timestamp::MAX.as_micros(),
        ] {
            let at = Timestamp::from_micros(micros);
            assert_eq!(at.to_string().parse(), Ok(at), "{at}");
        }
    }

    #[test]
    fn the_limits_are_the_ends_of_the_years_0_and_9999() {
        assert_eq!(Timestamp::MIN.to_string(), "0000-01-01T00:00:00.000000Z");
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn offsets_and_fractions_are_read() {
        let at = |text: &str| text.parse::<Timestamp>().map(Timestamp::as_micros);
        assert_eq!(at("1970-01-01T01:00:00+01:00"), Ok(0));
        assert_eq!(at("1970-01-01T00:00:00.5Z"), Ok(500_000));
        assert_eq!(at("1970-01-01T00:00:00.1234567Z"), Ok(123_456));
    }

    #[test]
    fn malformed_times_are_errors() {
        for text in [
            "",
            "1970-01-01",
            "2025-02-29T00:00:00Z",
            "2025-13-01T00:00:00Z",
            "2025-01-01T00:00:00",
            "2025-01-01T00:00:00.Z",
            "2025-01-01T24:00:00Z",
            // The offsets lead out of the years 0 to 9999.
            "9999-12-31T23:59:59.999999-00:01",
            "0000-01-01T00:00:00+00:01",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }
}
