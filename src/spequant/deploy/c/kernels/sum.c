/* A sum of two stored numbers: (a * first + b * second + offset) / 2^shift, to the nearest, a tie to the even code;
 * between low and top, less base. exceptions: pairs of
 * stored numbers, with what is stored of their sum. */
typedef struct {
    int32_t first;
    int32_t second;
    int64_t offset;
    int32_t low;
    int32_t top;
    int32_t base;
    uint8_t shift;
    uint8_t count; /* of exceptions */
    const uint8_t *exceptions;
} net_sum;

static int32_t net_summed(const net_sum *s, int32_t a, int32_t b)
{
    const int64_t value = (int64_t)a * s->first + (int64_t)b * s->second + s->offset;
    int64_t code = net_floor(value, s->shift);
    const uint8_t *e = s->exceptions;
    uint32_t i;
    for (i = 0; i < s->count; i++, e += 3) {
        if (e[0] == a && e[1] == b) {
            return e[2];
        }
    }
    if (((uint64_t)value & (((uint64_t)1 << s->shift) - 1u)) == 0u && ((uint64_t)code & 1u) != 0u) {
        code -= 1;
    }
    code = code < s->low ? s->low : code > s->top ? s->top : code;
    return (int32_t)code - s->base;
}
