/* The two inner loops of rans.py in C: the same numbers, more than ten times as fast. Built with the wheel where there
 * is a compiler; see rans.py for what they compute. Every read of `words`, `edges` and `found` stays within what the
 * caller says is there. */
#include <stddef.h>
#include <stdint.h>

/* Codes the events from the last to the first; the words come out in the order in which a decoder would meet them last.
 * Returns how many there are, at most `count`. */
size_t gic_rans_encode(uint64_t *state, const int32_t *starts, const int32_t *frequencies, size_t count,
                       uint16_t *words)
{
    uint64_t x = *state;
    size_t written = 0;
    while (count-- > 0) {
        const uint64_t frequency = (uint64_t)frequencies[count];
        if (x >= frequency << 24) {
            words[written++] = (uint16_t)x;
            x >>= 16;
        }
        x = (x / frequency << 16) + x % frequency + (uint64_t)starts[count];
    }
    *state = x;
    return written;
}

/* Reads `count` events; row t of `edges` is edges[rows[t]] = 0 ... edges[rows[t + 1] - 1] = 65536, ascending.
 * Returns how many of the `available` words were read. */
size_t gic_rans_decode(uint64_t *state, const uint16_t *words, size_t available, const int32_t *edges,
                       const int32_t *rows, const int32_t *tables, size_t count, int32_t *found)
{
    uint64_t x = *state;
    size_t read = 0;
    for (size_t i = 0; i < count; i++) {
        const int32_t *row = edges + rows[tables[i]];
        const int32_t slot = (int32_t)(x & 0xFFFF);
        int32_t low = 0, high = rows[tables[i] + 1] - rows[tables[i]] - 1; /* row[low] <= slot < row[high] */
        while (high - low > 1) {
            const int32_t middle = (low + high) / 2;
            if (row[middle] <= slot)
                low = middle;
            else
                high = middle;
        }
        found[i] = low;
        x = (uint64_t)(row[low + 1] - row[low]) * (x >> 16) + (uint64_t)(slot - row[low]);
        if (x < (uint64_t)1 << 24 && read < available)
            x = x << 16 | words[read++];
    }
    *state = x;
    return read;
}
