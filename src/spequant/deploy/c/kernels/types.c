/* A tensor: its positions one after the other, at each of them its channels: codes of `bits` each, or int32 where bits is
 * 32. What is stored is a code less the lowest one, and so 0 or more. Offset and stride, that of a position, in bytes. */
typedef struct {
    uint32_t offset;
    uint32_t stride;
    uint8_t bits;
    uint8_t in_scores; /* 0: it is in the arena */
} net_tensor;

typedef struct {
    uint32_t *arena;
    int32_t *scores;
    const uint8_t *input;
} net_memory;

static uint8_t *net_row(const net_memory *m, const net_tensor *t, uint32_t position)
{
    return (uint8_t *)m->arena + t->offset + position * t->stride;
}

static uint32_t net_get(const uint8_t *row, uint32_t channel, uint32_t bits)
{
    const uint32_t at = channel * bits;
    return ((uint32_t)row[at >> 3] >> (at & 7u)) & (((uint32_t)1 << bits) - 1u);
}

static void net_put(uint8_t *row, uint32_t channel, uint32_t bits, uint32_t code)
{
    const uint32_t at = channel * bits, shift = at & 7u, mask = (((uint32_t)1 << bits) - 1u) << shift;
    row[at >> 3] = (uint8_t)((row[at >> 3] & ~mask) | (code << shift));
}
