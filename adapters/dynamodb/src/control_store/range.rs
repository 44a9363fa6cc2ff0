//! One page of a range: its query, and the key at which it starts.
//!
//! DynamoDB refuses a start key that lies outside the bounds of its query or at the end where the
//! query stops. It also refuses a range whose end is below its start. For the port both are
//! ordinary requests, so they are answered without a request to DynamoDB.
use crate::limits::MAX_SORT_KEY_BYTES;
use foldstream::ports::{ControlStoreError, Direction, RangeQuery, SortBounds};

/// The query that answers one page of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// No query is needed, since no row can match.
    Empty,
    Query {
        condition: &'static str,
        /// The names and values in the condition.
        values: Vec<(&'static str, String)>,
        /// The sort key after which the page starts.
        start: Option<String>,
    },
}

pub(super) fn plan(query: &RangeQuery) -> Result<Plan, ControlStoreError> {
    let (low, high) = match &query.bounds {
        SortBounds::Prefix(prefix) => (prefix.as_str(), None),
        SortBounds::Between(low, high) => (low.as_str(), Some(high.as_str())),
        _ => ("", None),
    };
    let after = query.after.as_deref();
    for sort in [Some(low), high, after].into_iter().flatten() {
        if sort.len() > MAX_SORT_KEY_BYTES {
            let reason = format!(
                "a sort key has at most {MAX_SORT_KEY_BYTES} bytes, a bound has {}",
                sort.len()
            );
            return Err(ControlStoreError::Invalid { reason });
        }
    }
    if high.is_some_and(|high| high < low || high.is_empty()) {
        return Ok(Plan::Empty);
    }
    let prefix = matches!(query.bounds, SortBounds::Prefix(_));
    let below = |sort: &str| sort < low;
    let above = |sort: &str| match high {
        Some(high) => sort > high,
        None => prefix && sort > low && !sort.starts_with(low),
    };
    let start = match (after, query.direction) {
        (None, _) => None,
        (Some(after), Direction::Ascending) if above(after) || high == Some(after) => {
            return Ok(Plan::Empty);
        }
        (Some(after), Direction::Descending) if after <= low => return Ok(Plan::Empty),
        (Some(after), Direction::Ascending) if below(after) || after.is_empty() => None,
        (Some(after), Direction::Descending) if above(after) => None,
        (Some(after), _) => Some(after.to_owned()),
    };
    let mut values = vec![(":pk", query.partition.clone())];
    let condition = match (low, high) {
        ("", None) => "pk = :pk",
        (_, None) => {
            values.push((":low", low.into()));
            "pk = :pk AND begins_with(sk, :low)"
        }
        // DynamoDB refuses an empty value of a key.
        ("", Some(high)) => {
            values.push((":high", high.into()));
            "pk = :pk AND sk <= :high"
        }
        (_, Some(high)) => {
            values.extend([(":low", low.into()), (":high", high.into())]);
            "pk = :pk AND sk BETWEEN :low AND :high"
        }
    };
    Ok(Plan::Query {
        condition,
        values,
        start,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(bounds: SortBounds, after: &str, direction: Direction) -> Option<Option<String>> {
        let query = RangeQuery::new("p").with_bounds(bounds);
        let query = query
            .with_after(Some(after.into()))
            .with_direction(direction);
        match plan(&query).unwrap() {
            Plan::Empty => None,
            Plan::Query { start, .. } => Some(start),
        }
    }

    #[test]
    fn a_start_outside_of_the_bounds_is_no_start_or_the_end() {
        use Direction::{Ascending, Descending};
        let prefix = || SortBounds::Prefix("b".into());
        let between = || SortBounds::Between("b".into(), "c".into());
        for bounds in [prefix, between as fn() -> SortBounds] {
            assert_eq!(start(bounds(), "a", Ascending), Some(None));
            assert_eq!(start(bounds(), "b1", Ascending), Some(Some("b1".into())));
            assert_eq!(start(bounds(), "d", Ascending), None);
            assert_eq!(start(bounds(), "a", Descending), None);
            assert_eq!(start(bounds(), "b1", Descending), Some(Some("b1".into())));
            assert_eq!(start(bounds(), "d", Descending), Some(None));
            assert_eq!(start(bounds(), "b", Ascending), Some(Some("b".into())));
            assert_eq!(start(bounds(), "b", Descending), None);
        }
        assert_eq!(start(between(), "c", Ascending), None);
        assert_eq!(start(between(), "c", Descending), Some(Some("c".into())));
        assert_eq!(
            start(SortBounds::All, "a", Ascending),
            Some(Some("a".into()))
        );
        assert_eq!(start(SortBounds::All, "", Ascending), Some(None));
        assert_eq!(start(SortBounds::All, "", Descending), None);
    }

    #[test]
    fn bounds_that_nothing_can_match_ask_nothing() {
        for (low, high) in [("c", "b"), ("", "")] {
            let bounds = SortBounds::Between(low.into(), high.into());
            let query = RangeQuery::new("p").with_bounds(bounds);
            assert_eq!(plan(&query).unwrap(), Plan::Empty);
        }
    }

    #[test]
    fn empty_bounds_are_open() {
        let condition = |bounds| match plan(&RangeQuery::new("p").with_bounds(bounds)).unwrap() {
            Plan::Query { condition, .. } => condition,
            Plan::Empty => panic!("empty"),
        };
        assert_eq!(condition(SortBounds::Prefix(String::new())), "pk = :pk");
        assert_eq!(
            condition(SortBounds::Between(String::new(), "b".into())),
            "pk = :pk AND sk <= :high"
        );
    }
}
