import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Random;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;

/** Prints 1,000 odd keys with the partitions that Kafka's Java producer chooses for them. */
public final class Partitions {
    private static final int[] COUNTS = {1, 2, 3, 12, 50, 1000};

    public static void main(String[] arguments) {
        StringBuilder table = new StringBuilder("key");
        for (int count : COUNTS) {
            table.append(",of ").append(count);
        }
        for (byte[] key : keys()) {
            table.append('\n').append(HexFormat.of().formatHex(key));
            for (int count : COUNTS) {
                table.append(',').append(BuiltInPartitioner.partitionForKey(key, count));
            }
        }
        System.out.println(table);
    }

    private static List<byte[]> keys() {
        List<byte[]> keys = new ArrayList<>();
        String[] texts = {
            "", " ", "#", "cart#c-1", "cart#größe 🛒", "カート#1", "a\u0000b", "\u001f", "e\u0301", "\u00e9",
            "x".repeat(255), "x".repeat(256), "x".repeat(2048), "\uD83D\uDED2".repeat(100)
        };
        for (String text : texts) {
            keys.add(text.getBytes(StandardCharsets.UTF_8));
        }
        // Every byte alone, so that the sign of a byte cannot be mistaken.
        for (int b = 0; b < 256; b++) {
            keys.add(new byte[] {(byte) b});
        }
        // Lengths around the four bytes that the hash takes at a time, with bytes of every sign.
        Random random = new Random(1);
        while (keys.size() < 1000) {
            byte[] key = new byte[keys.size() % 37];
            random.nextBytes(key);
            keys.add(key);
        }
        return keys;
    }
}
