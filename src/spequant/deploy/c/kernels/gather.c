/* The windows of @LANES@ positions from `position` on, of the groups from `group` on; what is behind their end is 0. */
static void net_gather@LANES@(const net_conv *p, const net_memory *m, uint32_t position, uint32_t group, uint32_t *x)
{
    const uint32_t bits = p->from.bits, mask = (((uint32_t)1 << bits) - 1u) * @ONES@;
    const uint32_t left = p->groups - group, groups = left < p->block ? left : p->block;
    const uint32_t count = groups * p->inputs, first = group * p->inputs * bits;
    const uint32_t window = (uint32_t)p->chunks * p->chunk, step = p->block > 1 ? window : 1u;
    uint32_t k[3], i, lane, tap = 0;
    for (k[0] = 0; k[0] < p->kernel[0]; k[0]++) {
        for (k[1] = 0; k[1] < p->kernel[1]; k[1]++) {
            for (k[2] = 0; k[2] < p->kernel[2]; k[2]++) {
                const uint8_t *rows[@LANES@];
                uint32_t next[@LANES@], shift = first & 7u;
                uint32_t *to = x + tap;
                for (lane = 0; lane < @LANES@; lane++) {
                    const uint8_t *const row = net_under(p, m, position + lane, k);
                    next[lane] = row != NULL;
                    rows[lane] = row != NULL ? row + (first >> 3) : &p->zeros;
                }
                for (i = 0; i < count; shift = 0) {
                    const uint32_t codes = @CODES@;
                    for (lane = 0; lane < @LANES@; lane++) {
                        rows[lane] += next[lane];
                    }
                    for (; shift < 8u && i < count; shift += bits, i++, to += step) {
                        *to = (codes >> shift) & mask;
                    }
                }
                tap += p->block > 1 ? 1u : p->inputs;
            }
        }
    }
    for (i = 0; i < groups; i++) {
        for (lane = tap; lane < window; lane++) {
            x[i * window + lane] = 0;
        }
    }
}

/* Sums of the codes of each position. */
static void net_total@LANES@(uint32_t *x, uint32_t count, uint32_t *sums)
{
    uint32_t i@FIRST@;
    for (i = 0; i < count; i++) {
@SUM@
    }
@SUMS@
}
