/* From sums to what is stored. Few codes: the sums at which the codes 1, 2 ... begin, 2^bits - 1 of them per channel.
 * Many: (sum * multiplier + offset) / 2^shift, downwards, between low and top, less low; where low is top, as it is. even:
 * what is no remainder was a tie, which goes to the even code. */
typedef struct {
    const int16_t *near_steps;
    const int32_t *steps;
    const int32_t *multipliers;
    const int64_t *offsets;
    const uint8_t *shifts;
    int32_t low, top;
    uint8_t bits;
    uint8_t by_channel;
    uint8_t even;
} net_rounding;

static int32_t net_rounded(const net_rounding *r, uint32_t channel, int32_t sum)
{
    const uint32_t at = r->by_channel ? channel : 0u;
    const uint32_t codes = (uint32_t)1 << r->bits;
    uint32_t code = 0, half = codes >> 1;
    int64_t value;
    int tie;
    if (r->near_steps != NULL) {
        const int16_t *const steps = r->near_steps + at * (codes - 1u);
        for (; half != 0; half >>= 1) {
            code += sum >= steps[code + half - 1u] ? half : 0u;
        }
        return (int32_t)code;
    }
    if (r->steps != NULL) {
        const int32_t *const steps = r->steps + at * (codes - 1u);
        for (; half != 0; half >>= 1) {
            code += sum >= steps[code + half - 1u] ? half : 0u;
        }
        return (int32_t)code;
    }
    value = (int64_t)sum * r->multipliers[at] + r->offsets[at];
    tie = r->even && ((uint64_t)value & (((uint64_t)1 << r->shifts[at]) - 1u)) == 0u;
    value = net_floor(value, r->shifts[at]);
    if (r->low == r->top) {
        return (int32_t)value;
    }
    value -= tie && ((uint64_t)value & 1u) != 0u ? 1 : 0;
    return (int32_t)(value < r->low ? 0 : value > r->top ? r->top - r->low : value - r->low);
}
