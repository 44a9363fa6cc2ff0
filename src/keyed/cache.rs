//! A bounded cache of the entries that were used last.
use foldhash::HashMap;
use std::hash::Hash;

/// A map that remembers the entries used most recently, in two halves.
///
/// New entries, and entries that were looked up, are young. When the young half is full it becomes
/// the old one, and the entries of the former old half are forgotten: they were not used while a
/// whole half was filled. The map therefore holds every entry that was among the last `capacity`
/// used, and at most `2 * capacity` in all.
///
/// # Complexity
/// Every operation on one key is one or two look-ups in a hash map, without the list that an exact
/// order of use would need. An insertion that finds the young half full drops up to `capacity`
/// entries at once, which is constant per insertion on average. Only
/// [`retain`](Self::retain) visits all entries. No answer depends on the order of a hash map.
#[derive(Debug)]
pub(crate) struct RecentlyUsed<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    capacity: usize,
}

impl<K: Eq + Hash + Clone, V> RecentlyUsed<K, V> {
    /// Creates an empty cache that holds the `capacity` entries used last. With zero it holds none.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            young: HashMap::default(),
            old: HashMap::default(),
            capacity,
        }
    }

    /// Returns the value of a key, which becomes young by that.
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        if !self.old.is_empty() && !self.young.contains_key(key) {
            let (key, value) = self.old.remove_entry(key)?;
            self.insert(key, value);
        }
        self.young.get(key)
    }

    /// Sets the value of a key, which becomes young by that.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.capacity == 0 {
            return;
        }
        if let Some(known) = self.young.get_mut(&key) {
            *known = value;
            return;
        }
        // An older value must not come back once this one is forgotten.
        self.old.remove(&key);
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Forgets a key, and returns its value.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let young = self.young.remove(key);
        young.or_else(|| self.old.remove(key))
    }

    /// Forgets the entries for which the predicate is false.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        self.young.retain(|key, value| keep(key, value));
        self.old.retain(|key, value| keep(key, value));
    }

    /// Returns the number of entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = RecentlyUsed::new(10);
        for n in 0..100 {
            cache.insert(n, n);
            assert_eq!(cache.get(&0), Some(&0));
            assert!(cache.len() <= 20);
        }
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.get(&99), Some(&99));
    }

    #[test]
    fn a_capacity_of_zero_holds_nothing() {
        let mut cache = RecentlyUsed::new(0);
        cache.insert(1, 1);
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn what_was_removed_or_replaced_does_not_come_back() {
        let mut cache = RecentlyUsed::new(2);
        cache.insert("a", 1);
        cache.insert("b", 1);
        // "a" is in the old half now, and is replaced from there.
        cache.insert("c", 1);
        cache.insert("a", 2);
        cache.insert("d", 1);
        assert_eq!(cache.remove(&"a"), Some(2));
        assert_eq!(cache.get(&"a"), None);
        cache.retain(|key, _| *key == "d");
        assert_eq!(cache.get(&"c"), None);
        assert_eq!(cache.get(&"d"), Some(&1));
    }

    /// Compared with a map that forgets nothing: an answer is the last value or none, and never
    /// none for one of the last `capacity` keys used.
    #[test]
    fn an_answer_is_the_last_value_and_the_last_keys_used_are_there() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let capacity = rng.usize(1..8);
            let mut cache = RecentlyUsed::new(capacity);
            let mut truth = BTreeMap::new();
            let mut used: Vec<u8> = Vec::new();
            for step in 0..500 {
                let key = rng.u8(0..20);
                match rng.u8(0..6) {
                    0 => {
                        assert!(cache.remove(&key).is_none_or(|value| truth[&key] == value));
                        truth.remove(&key);
                        continue;
                    }
                    1..=3 => {
                        cache.insert(key, step);
                        truth.insert(key, step);
                    }
                    _ => {
                        let found = cache.get(&key).copied();
                        let is_recent = used.iter().rev().take(capacity).any(|k| *k == key);
                        match found {
                            Some(value) => assert_eq!(truth.get(&key), Some(&value), "seed {seed}"),
                            None => assert!(!is_recent || !truth.contains_key(&key), "seed {seed}"),
                        }
                        if found.is_none() {
                            continue;
                        }
                    }
                }
                used.retain(|k| *k != key);
                used.push(key);
                assert!(cache.len() <= 2 * capacity, "seed {seed}");
            }
        }
    }
}
