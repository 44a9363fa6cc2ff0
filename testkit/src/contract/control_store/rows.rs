//! Cases of rows that are written and read back.
use super::given::{
    Store, assert_invalid, assert_row, fresh_key, fresh_partition, given_row, in_an_hour, must_put,
    range, row,
};
use foldstream::{
    Timestamp,
    ports::{
        ControlStoreError, DeleteExpect, Expect, RangeQuery, Revision, Row, RowKey, SortBounds,
    },
};
use std::time::Duration;

/// A value comes back byte for byte by every way to read it: binary, text or empty.
pub async fn a_value_comes_back_byte_for_byte(store: Store) {
    let all_bytes: Vec<u8> = (0..=255).collect();
    for value in [
        all_bytes,
        b"{ \"n\": 1.0 }".to_vec(),
        "größe 🛒".into(),
        vec![0],
        vec![],
    ] {
        let row = row(&fresh_key(), value);
        must_put(&store, &row, Expect::Absent).await;
        assert_row(&store, &row.key, Some(&row)).await;
    }
}

/// A revision comes back whatever its bits are.
pub async fn a_revision_comes_back_whatever_its_bits(store: Store) {
    for bits in [
        0,
        1,
        u128::MAX,
        1 << 127,
        0x0123_4567_89ab_cdef_0123_4567_89ab_cdef,
    ] {
        let row = Row::new(fresh_key(), "v", Revision::from_u128(bits));
        must_put(&store, &row, Expect::Absent).await;
        assert_row(&store, &row.key, Some(&row)).await;
    }
}

/// An expiry comes back, rounded up to whole seconds at most, and no expiry stays none.
pub async fn an_expiry_comes_back(store: Store) {
    let whole = row(&fresh_key(), "v").with_expiry(Some(in_an_hour()));
    must_put(&store, &whole, Expect::Absent).await;
    assert_row(&store, &whole.key, Some(&whole)).await;

    let given = in_an_hour().plus(Duration::from_micros(400_001));
    let fine = row(&fresh_key(), "v").with_expiry(Some(given));
    must_put(&store, &fine, Expect::Absent).await;
    let stored = store.get(&fine.key).await.unwrap().unwrap();
    let found = stored.expires_at.expect("an expiry");
    let next_second = Timestamp::from_micros((given.as_micros() / 1_000_000 + 1) * 1_000_000);
    assert!(
        found >= given && found <= next_second,
        "{found} for {given}"
    );

    let endless = given_row(&store, "v").await;
    assert_row(&store, &endless.key, Some(&endless)).await;
}

/// A later write replaces everything of an earlier one: value, revision and expiry.
pub async fn a_later_write_replaces_all_of_an_earlier_one(store: Store) {
    let key = fresh_key();
    let first = row(&key, "a long first value").with_expiry(Some(in_an_hour()));
    must_put(&store, &first, Expect::Absent).await;
    let second = row(&key, "v");
    must_put(&store, &second, Expect::Revision(first.revision)).await;
    assert_row(&store, &key, Some(&second)).await;
    let third = row(&key, "").with_expiry(Some(in_an_hour()));
    must_put(&store, &third, Expect::Any).await;
    assert_row(&store, &key, Some(&third)).await;
}

/// Every later read sees a write or a delete at once.
pub async fn every_later_read_sees_a_write(store: Store) {
    let key = fresh_key();
    assert_row(&store, &key, None).await;
    for n in 0..10 {
        let written = row(&key, format!("{n}"));
        must_put(&store, &written, Expect::Any).await;
        assert_row(&store, &key, Some(&written)).await;
        if n % 3 == 2 {
            let _ = store.delete(&key, DeleteExpect::Any).await.unwrap();
            assert_row(&store, &key, None).await;
        }
    }
}

/// A key is any text: other scripts, separators, and texts that look alike only when they are
/// joined.
pub async fn keys_are_any_text_and_are_not_mixed_up(store: Store) {
    let base = fresh_partition();
    let keys = [
        RowKey::new(format!("{base}/a"), "b"),
        RowKey::new(&base, "a/b"),
        RowKey::new(format!("{base}/a/b"), "c"),
        RowKey::new(format!("{base}/a"), "b/c"),
        RowKey::new(&base, "A/B"),
        RowKey::new(&base, " "),
        RowKey::new(&base, "stream#1\u{1f}00000000000000000001"),
        RowKey::new(&base, "größe 🛒 \u{0} \"'"),
        // A letter with its accent as one character, and the same as two characters.
        RowKey::new(&base, "\u{e9}"),
        RowKey::new(&base, "e\u{301}"),
    ];
    let mut rows = Vec::new();
    for key in keys {
        let row = row(&key, format!("value of {key:?}"));
        must_put(&store, &row, Expect::Absent).await;
        rows.push(row);
    }
    for row in &rows {
        assert_row(&store, &row.key, Some(row)).await;
    }
}

/// Keys of the greatest length are accepted, and longer or empty ones are `Invalid` wherever a key
/// is given.
pub async fn keys_over_their_limits_are_invalid(store: Store) {
    let partition = fresh_partition();
    let longest = RowKey::new(
        format!(
            "{partition}{}",
            "p".repeat(RowKey::MAX_PARTITION - partition.len())
        ),
        "s".repeat(RowKey::MAX_SORT),
    );
    let kept = row(&longest, "v");
    must_put(&store, &kept, Expect::Absent).await;
    assert_row(&store, &longest, Some(&kept)).await;

    // Each character has three bytes: the limit counts bytes, not characters.
    let wide = "€".repeat(RowKey::MAX_SORT / 3 + 1);
    for bad in [
        RowKey::new("", "s"),
        RowKey::new(&partition, ""),
        RowKey::new(format!("{}p", longest.partition), "s"),
        RowKey::new(&partition, format!("{}s", longest.sort)),
        RowKey::new(&partition, wide),
    ] {
        assert_invalid(&store.get(&bad).await);
        assert_invalid(&store.get_many(&[longest.clone(), bad.clone()]).await);
        assert_invalid(&store.put(&row(&bad, "v"), Expect::Any).await);
        assert_invalid(&store.delete(&bad, DeleteExpect::Any).await);
    }
    assert_eq!(range(&store, RangeQuery::new(&partition)).await, []);
}

/// A value of exactly [`Row::MAX_VALUE`] is accepted and comes back.
pub async fn a_value_of_exactly_the_limit_is_taken(store: Store) {
    let value: Vec<u8> = (0..Row::MAX_VALUE).map(|i| (i % 251) as u8).collect();
    // With the longest key, since a backend that counts key and value together must have room for
    // both.
    let partition = fresh_partition();
    let partition = format!(
        "{partition}{}",
        "p".repeat(RowKey::MAX_PARTITION - partition.len())
    );
    let key = RowKey::new(partition, "s".repeat(RowKey::MAX_SORT));
    let row = row(&key, value).with_expiry(Some(in_an_hour()));
    must_put(&store, &row, Expect::Absent).await;
    assert_row(&store, &key, Some(&row)).await;
}

/// A value over the limit is `TooLarge` with that limit, and changes nothing.
pub async fn a_value_over_the_limit_is_too_large(store: Store) {
    let kept = given_row(&store, "kept").await;
    for expect in [Expect::Any, Expect::Revision(kept.revision), Expect::Absent] {
        let large = row(&kept.key, vec![b'x'; Row::MAX_VALUE + 1]);
        match store.put(&large, expect).await {
            Err(ControlStoreError::TooLarge { key, bytes, limit }) => {
                assert_eq!(key, kept.key);
                assert_eq!((bytes, limit), (Row::MAX_VALUE + 1, Row::MAX_VALUE));
            }
            other => panic!("expected TooLarge, found {other:.300?}"),
        }
    }
    assert_row(&store, &kept.key, Some(&kept)).await;
}

/// `get_many` answers in the order of the keys, with `None` for absent rows, also if a key is given
/// twice.
pub async fn get_many_answers_in_the_order_of_the_keys(store: Store) {
    assert_eq!(store.get_many(&[]).await.unwrap(), []);
    let partition = fresh_partition();
    let mut rows = Vec::new();
    for sort in ["c", "a", "b"] {
        let row = row(&RowKey::new(&partition, sort), sort);
        must_put(&store, &row, Expect::Absent).await;
        rows.push(row);
    }
    let elsewhere = given_row(&store, "elsewhere").await;
    let key = |row: &Row| row.key.clone();
    let keys = [
        key(&rows[1]),
        fresh_key(),
        key(&elsewhere),
        key(&rows[0]),
        key(&rows[1]),
        RowKey::new(&partition, "absent"),
        key(&rows[2]),
        key(&rows[1]),
    ];
    let some = |row: &Row| Some(row.clone());
    let expected = [
        some(&rows[1]),
        None,
        some(&elsewhere),
        some(&rows[0]),
        some(&rows[1]),
        None,
        some(&rows[2]),
        some(&rows[1]),
    ];
    assert_eq!(store.get_many(&keys).await.unwrap(), expected);
}

/// `get_many` takes any number of keys, here more than the batches of usual backends.
pub async fn get_many_takes_any_number_of_keys(store: Store) {
    let partition = fresh_partition();
    let mut expected = Vec::new();
    for n in 0..260 {
        let row = row(
            &RowKey::new(&partition, format!("{n}")),
            format!("value {n}"),
        );
        if n % 4 == 0 {
            must_put(&store, &row, Expect::Absent).await;
            expected.push((row.key.clone(), Some(row)));
        } else {
            expected.push((row.key, None));
        }
    }
    let keys: Vec<_> = expected.iter().map(|(key, _)| key.clone()).collect();
    let rows: Vec<_> = expected.into_iter().map(|(_, row)| row).collect();
    assert_eq!(store.get_many(&keys).await.unwrap(), rows);
}

/// Large rows come back together, even if their sum exceeds one answer of the backend.
pub async fn large_rows_come_back_together(store: Store) {
    let partition = fresh_partition();
    let mut rows = Vec::new();
    for n in 0..9u8 {
        let key = RowKey::new(&partition, format!("{n}"));
        let row = row(&key, vec![n; 200_000]);
        must_put(&store, &row, Expect::Absent).await;
        rows.push(row);
    }
    let keys: Vec<_> = rows.iter().map(|row| row.key.clone()).collect();
    let found = store.get_many(&keys).await.unwrap();
    assert!(
        found == rows.iter().cloned().map(Some).collect::<Vec<_>>(),
        "get_many"
    );
    let all = range(&store, RangeQuery::new(&partition)).await;
    assert!(all == rows, "a range over large rows");
    let some = RangeQuery::new(&partition)
        .with_bounds(SortBounds::Between("2".into(), "8".into()))
        .with_after(Some("3".into()));
    assert!(range(&store, some).await == rows[4..], "a part of it");
}
