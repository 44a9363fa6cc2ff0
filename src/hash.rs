//! The hash function of the core: murmur2 as Kafka's Java clients compute it.
//!
//! It determines Kafka partitions and the shards of control rows. Its results are stored, so it
//! never changes. The standard library's `DefaultHasher`, which may change with a compiler, is
//! never used for anything stored.

/// Returns murmur2 of `data` with Kafka's seed, as an unsigned number.
///
/// # Example
/// ```
/// // From Kafka's own tests.
/// assert_eq!(foldstream::adapter::murmur2(b"foobar") as i32, -790_332_482);
/// ```
#[must_use]
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    // Kafka computes with 32-bit lengths; longer data cannot be a key.
    let mut h = SEED ^ (data.len() as u32);
    let (chunks, tail) = data.as_chunks::<4>();
    for chunk in chunks {
        let mut k = u32::from_le_bytes(*chunk).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (i, byte) in tail.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

/// Returns the partition that Kafka's Java clients choose for a key:
/// `murmur2(key) & 0x7fffffff % partitions`.
///
/// `partitions` of 0 counts as 1.
///
/// # Example
/// ```
/// let partition = foldstream::adapter::kafka_partition(b"cart#7", 12);
/// assert!(partition < 12);
/// assert_eq!(partition, foldstream::adapter::kafka_partition(b"cart#7", 12));
/// ```
#[must_use]
pub fn kafka_partition(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_matches_kafkas_published_vectors() {
        for (text, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58_897_971,
            ),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), expected, "{text}");
        }
    }
}
